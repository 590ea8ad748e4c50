"""The approvals for what a recipe reaches outside its own folder; only the user can give them."""
