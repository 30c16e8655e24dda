"""Teaching a pretrained model to remember: facts to learn from, the training, and what it is worth."""
