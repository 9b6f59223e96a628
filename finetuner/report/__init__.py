"""What people look at after a training.

In: a finetune's manifest as far as it is known, its examples, losses and strength sheet. Out: a page, a model card, and the
pieces of both as PNG and JSON, in the finetune's folder. Begin with report.py, which writes all of them.
"""

from finetuner.report.report import write_report
from finetuner.report.sheet import contact_sheet, labelled_grid, sheet_prompts, strength_sheet

__all__ = ["contact_sheet", "labelled_grid", "sheet_prompts", "strength_sheet", "write_report"]
