"""`python -m yolo_prune` is `yoloprune`."""

from yolo_prune.cli.main import main

if __name__ == "__main__":
    main()
