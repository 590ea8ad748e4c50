"""Teachers: models that return Pr_t(y | c, z), run here or (`openai`) behind a server."""
