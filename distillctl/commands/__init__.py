"""What commands print, and what they do apart from running stages."""
