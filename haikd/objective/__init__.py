"""What is minimised: weighted terms on pairs of student and teacher."""
