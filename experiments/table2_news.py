"""Table 2: BLEU of every model. News sentences of WMT 2017 (10,000 as a stand-in: the rest cannot be had).

    python experiments/table2_news.py [--manual-dir DIR]

Trains what is missing, prints Markdown and writes it with a picture to `results/SCALE/`.
"""

import lab
from text_models import table

if __name__ == "__main__":
    lab.main("table2_news.py", __doc__, lambda args: table(2, "news", "news", args))
