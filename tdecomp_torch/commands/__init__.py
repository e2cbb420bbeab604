"""Commands that run models: entry points of ``tdecomp.commands``, read without torch.

Files here import torch and transformers inside functions only: `tdecomp --help` lists the commands
where neither is installed, and takes no longer.
"""
