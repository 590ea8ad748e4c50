"""`python -m tests.hostile [FORMAT | FORMAT/FILE …]`"""

import os
import sys


def main() -> int:
    """The libraries read these when they are imported, so it happens after."""
    os.environ |= {"CI": "1", "COLUMNS": "120", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "RUST_BACKTRACE": "0"}
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error"}
    from tests.hostile import verdicts

    return verdicts.main(sys.argv[1:])


sys.exit(main())
