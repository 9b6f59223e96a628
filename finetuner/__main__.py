"""``python -m finetuner``: look after the finetunes of the store that ``FINETUNE_STORE`` names."""

from finetuner.cli import main

main()
