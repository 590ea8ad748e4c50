"""What a recipe reaches outside its own folder, and what the user, not the recipe, has approved."""
