"""Code that runs a deployed graph, in the languages of apps: one copy for report, cards and bundle."""
