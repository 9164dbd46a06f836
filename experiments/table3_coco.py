"""Table 3: BLEU of every model. Image captions of COCO (Texygen's 10,000).

    python experiments/table3_coco.py [--manual-dir DIR]

Trains what is missing, prints Markdown and writes it with a picture to `results/SCALE/`.
"""

import lab
from text_models import table

if __name__ == "__main__":
    lab.main("table3_coco.py", __doc__, lambda args: table(3, "coco", "captions", args))
