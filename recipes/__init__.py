"""What `rlkit run NAME` and `python -m recipes.NAME` run: each file is one recipe."""

import os
import sys

# `python -m` puts the current folder in front of everything that is installed, and a rewards.py or tokenizers.py there
# would be imported in place of the package of that name. While Python looks for the module, argv[0] is still "-m".
# Where that folder holds rlkit itself, it may be the only place to find it, so it moves to the end.
if sys.argv[:1] == ["-m"]:
    if sys.path[0] in ("", os.getcwd()):
        del sys.path[0]
        if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) == os.getcwd():
            sys.path.append(os.getcwd())

    from rlkit.interrupt import end_silently

    end_silently()
