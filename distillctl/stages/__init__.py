"""The stages, one file each, the same for every kind of task. Each is run(recipe, workspace) -> StageOutput.

Stages never import each other. What differs by kind is asked of `tasks.of(recipe, workspace)`.
"""
