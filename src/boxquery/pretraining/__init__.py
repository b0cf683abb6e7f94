"""Learning without labels: patches cut out of images at random, the model that looks for them, and how well it finds them."""
