"""Build the student: from a pretrained model, from some of its layers, or from a configuration."""
