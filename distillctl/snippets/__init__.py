"""Code that asks a deployed graph, in the languages that apps are written in: one copy for report, cards and bundle."""
