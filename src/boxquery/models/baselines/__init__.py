"""What the family is compared with: torchvision's anchor-based and point-based detectors, behind the same ``Model``."""
