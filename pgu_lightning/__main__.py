"""``python -m pgu_lightning`` is ``pgu-lightning``."""

from pgu_lightning.app.main import main

if __name__ == "__main__":
    main()
