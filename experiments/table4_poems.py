"""Table 4: BLEU of every model. Chinese quatrains.

    python experiments/table4_poems.py [--manual-dir DIR]

Trains what is missing, prints Markdown and writes it with a picture to `results/SCALE/`.
"""

import lab
from text_models import table

if __name__ == "__main__":
    lab.main("table4_poems.py", __doc__, lambda args: table(4, "poems", "poems", args))
