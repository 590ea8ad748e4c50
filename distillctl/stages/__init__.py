"""The stages. Each is run(recipe, workspace) -> Outcome; they never import each other."""
