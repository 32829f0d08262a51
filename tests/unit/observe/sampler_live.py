"""Run by test_sampler under every interpreter: the sampler's daemon in a folder, ten rows a second.

Usage: sampler_live.py PAYLOAD_DIR FOLDER [no_tools | quiet]. no_tools: neither netlink nor ss counts sockets.
"""

import os
import sys

sys.path.insert(0, sys.argv[1])
import observe_sampler
import observe_sockets

observe_sampler.INTERVAL = 0.1
for how in sys.argv[3:]:
    if how == "no_tools":
        os.environ["PATH"] = "/nonexistent"
        observe_sampler.count_sockets = lambda port: observe_sockets.count_sockets(port, ("ss", "proc"))
    else:
        observe_sampler.QUIET = 0.3
sys.exit(observe_sampler.main([sys.argv[2]]))
