"""What the paper and its authors' post say and set; nothing of ours."""
