"""What the scripts of the demo do not want to hear from the libraries they use."""

import logging
import os
import warnings


def quietly() -> None:
    """No network, and no reports of what is loaded how; before the models are."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, in a notebook
    from transformers.utils import logging as reports

    reports.set_verbosity_error()
    reports.disable_progress_bar()
    # transformers names its own deprecations when PEFT calls it, and that imports bitsandbytes
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # PEFT's LoRA-GA looks at modules whose inputs need no gradient
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
