"""What is kept of the teacher's distribution, and how."""
