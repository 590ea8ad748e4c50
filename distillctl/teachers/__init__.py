"""Where Pr_t(y | c, z) comes from."""
