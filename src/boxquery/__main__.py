"""``python -m boxquery``, which ``torchrun -m`` needs."""

from boxquery.cli import main

if __name__ == "__main__":
    main()
