"""distillctl turns a prompt into a phone-sized model."""

import os

__version__ = "0.1.0"

# Nothing phones home. ONNX Runtime's Linux builds do since 1.29 (model names, hashes, a device id), unless this is
# set before they are loaded; a value of the user's own stays. Processes started here inherit it.
for _variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")
