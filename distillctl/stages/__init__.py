"""The stages. Each is run(recipe, workspace) -> StageOutput; they never import each other."""
