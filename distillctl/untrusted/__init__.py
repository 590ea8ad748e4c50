"""What strangers' bytes meet first: bounds on files, JSON, templates and Parquet; text that cannot give orders."""
