"""Store a reduced form of the teacher's distributions (soft labels), and read it back as training targets."""
