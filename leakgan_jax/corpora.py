"""Corpora as TensorFlow Datasets, prepared and read without TensorFlow: a builder for each, `resolve` and `load`.

Every builder keeps the lines of UTF-8 files as they are and in their order, blank lines aside; tokenising and
lower-casing are `data.tokenize`. Files come from a folder of the user's (`manual_dir`) or from their source; where
their checksum is known, any other file is an error. Importing this module imports tensorflow_datasets.
"""

import contextlib
import hashlib
import io
import itertools
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, download_manager, downloader

from leakgan_jax import data
from leakgan_jax.config import nearest, shown
from leakgan_jax.data import DataError, PathLike

_TEXYGEN = "https://raw.githubusercontent.com/geek-ai/Texygen/3104e22ac75f3cc2070da2bf5e2da6d2bef149ad/data"
_GFS = "https://raw.githubusercontent.com/pclucas14/GansFallingShort/e6be915b1aed7843d83f7d543bfb8de9f3d3461f"


_READ = 10_000  # lines at a time


class Source(NamedTuple):
    """A file upstream. Without a checksum, which is so only where nobody has it, the file is taken as it is."""

    name: str  # in manual_dir
    url: str
    size: int = 0  # bytes
    sha256: str = ""


def load(dataset: str, manual_dir: PathLike | None = None, data_dir: PathLike | None = None) -> dict[str, list[str]]:
    """The lines of each split of a dataset, in the order of the files: `train` and, where there is one, `test`.

    What was prepared before is read. Otherwise it is prepared, from the files in `manual_dir` and, for those not
    there, from their source.
    Args:
        dataset: `coco_image_captions`, `emnlp2017_news`, `chinese_poems` or `text_lines`, or a full name as `resolve`
            gives it.
        manual_dir: folder of files that need no download. For `text_lines`: a folder with `train.txt` and, where
            there is one, `test.txt`, or the path of one file.
        data_dir: where prepared datasets are kept; the usual place of tensorflow_datasets if None.
    Raises:
        DataError if the dataset is unknown; if a file is neither there nor can be downloaded, is not the one that its
        checksum says, or is not text (see `data.read_lines`); if what was prepared is damaged.
    """
    name, _, variant = resolve(dataset, manual_dir, data_dir).partition("/")
    files = _BUILDERS[name].manual_files(variant, manual_dir)
    folder = _folder(name, variant, data_dir)
    with _quiet():
        if not folder.exists():
            _prepare(name, variant, manual_dir, data_dir)
        try:
            builder = _builder(name, variant, data_dir)
            splits = ("train", "test") if "test" in builder.info.splits else ("train",)
            lines = {split: _read(builder, split) for split in splits}
            digests = dict(builder.info.metadata)
        except Exception as error:  # what tfds, protobuf and array_record raise on damage has no common class
            raise DataError(
                f"{folder}: the dataset prepared there cannot be read ({type(error).__name__}); "
                "delete the folder to have it prepared again"
            ) from None
    for split, path in files.items():
        if data.digest(path) != digests.get(split):
            raise DataError(f"{path}: not the file that {folder} was prepared from; choose another --data-dir for it")
    return lines


def resolve(dataset: str, manual_dir: PathLike | None = None, data_dir: PathLike | None = None) -> str:
    """The full name of a dataset, with its variant where it has several: under it, the same text is read later.

    `emnlp2017_news` is its variant `texygen` where `manual_dir` has the training file of that, else `stand_in` where
    it has the training file of that, else the one that is prepared, `texygen` first, else `texygen`. The variant of
    `text_lines` is a digest of its files. Raises `DataError` as `load` does.
    """
    name, _, variant = dataset.partition("/")
    if name not in _BUILDERS:
        close = nearest(name[:100], _BUILDERS)
        raise DataError(f"unknown dataset {shown(name)}{close}; there are {', '.join(_BUILDERS)}")
    builder = _BUILDERS[name]
    if builder is TextLines:
        if not re.fullmatch("[0-9a-f]{0,16}", variant):  # it names a folder
            raise DataError(f"unknown dataset {shown(dataset)}; after text_lines/ come at most 16 hexadecimal digits")
        if manual_dir is not None:
            found = _digest(TextLines.manual_files(variant, manual_dir))
            if variant not in ("", found):
                raise DataError(f"{manual_dir}: the text there is text_lines/{found}, not {dataset}")
            variant = found
        elif not variant or not _folder(name, variant, data_dir).exists():
            raise DataError(f"{dataset} is not prepared and has no source; give --manual-dir DIR with its train.txt")
    elif not variant:
        there = (v for v in builder.SOURCES if "train" in builder.manual_files(v, manual_dir))
        prepared = (v for v in builder.SOURCES if _folder(name, v, data_dir).exists())
        variant = next(itertools.chain(there, prepared, builder.SOURCES))
    elif variant not in builder.SOURCES:
        known = ", ".join(f"{name}/{v}".strip("/") for v in builder.SOURCES)
        raise DataError(f"unknown dataset {shown(dataset)}; there is {known}")
    return f"{name}/{variant}".strip("/")


class _Lines(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Lines of text, one file a split."""

    VERSION = tfds.core.Version("1.0.0")
    SOURCES: ClassVar[dict[str, dict[str, Source]]]  # variant: split: file
    MANUAL_DOWNLOAD_INSTRUCTIONS = HOMEPAGE = LICENSE = CITATION = ""

    manual_dir: PathLike | None = None  # comes before that of tfds, which has to be a folder and not empty

    @classmethod
    def manual_files(cls, variant: str, manual_dir: PathLike | None) -> dict[str, Path]:
        """The file of each split that is in `manual_dir`. Raises `DataError` if one is not what its checksum says."""
        files: dict[str, Path] = {}
        if manual_dir is None:
            return files
        if not Path(manual_dir).is_dir():
            raise DataError(f"{manual_dir}: no such folder; give the one that holds the files of {cls.name}")
        for split, source in cls.SOURCES[variant].items():
            path = Path(manual_dir) / source.name
            if not path.exists():
                continue
            if source.sha256 and data.digest(path) != source.sha256:
                raise DataError(
                    f"{path}: not the file of {source.url}, whose SHA-256 is {source.sha256}; "
                    "get that one, or give a text of your own as --corpus"
                )
            files[split] = path
        return files

    @property
    def variant(self) -> str:
        return self.builder_config.name if self.builder_config else ""

    @property
    def sources(self) -> dict[str, Source]:
        return self.SOURCES.get(self.variant, {})

    @property
    def url_infos(self) -> dict[str, checksums.UrlInfo]:
        """The checksums that tfds verifies downloads by; of its own it looks for a checksums.tsv."""
        known = [source for source in self.sources.values() if source.sha256]
        return {s.url: checksums.UrlInfo(size=s.size, checksum=s.sha256, filename=s.name) for s in known}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            citation=self.CITATION,
            metadata=tfds.core.MetadataDict(),  # the SHA-256 of the file of each split
            disable_shuffling=True,  # keeps the order of the file
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        manual_dir = self.manual_dir
        if manual_dir is None:
            with contextlib.suppress(AssertionError):  # that of tfds is not there or empty
                manual_dir = dl_manager.manual_dir
        files = self.manual_files(self.variant, manual_dir)
        for split, source in self.sources.items():
            if split not in files:
                files[split] = self._download(source, dl_manager, manual_dir or "--manual-dir DIR")
        self.info.metadata.update({split: data.digest(path) for split, path in files.items()})
        return {split: self._generate_examples(path) for split, path in files.items()}

    def _download(self, source: Source, dl_manager: tfds.download.DownloadManager, place: PathLike) -> Path:
        retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 2  # its 10 take 200 seconds where there is no network
        try:
            return Path(dl_manager.download(source.url))
        except download_manager.NonMatchingChecksumError:
            why = f"what {source.url} gives has not the SHA-256 {source.sha256}"
        except Exception as error:  # what tfds, requests and urllib3 raise has no common class
            why = f"{source.url} cannot be downloaded ({type(error).__name__})"
        finally:
            downloader.MAX_RETRIES = retries
        raise DataError(
            f"{source.name} is not in {place}, and {why}; put the files there: {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )

    def _generate_examples(self, path: Path):
        for number, line in enumerate(data.read_lines(path)):
            yield number, {"text": line}


class CocoImageCaptions(_Lines):
    """Captions of images, the Texygen split: 10,000 to train on, 10,000 to test, lower-case, not tokenised.

    By NLTK's word tokenizer the training captions have 4,659 types and at most 37 words; 41 repeat another, 123 of
    the test captions do, and the splits share 7, spaces aside. From the captions of Microsoft COCO.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = "image_coco.txt and test_coco.txt"

    SOURCES = {
        "": {
            "train": Source(
                "image_coco.txt",
                f"{_TEXYGEN}/image_coco.txt",
                546_442,
                "2c0fd1f0f43aac6a9dc3926a535516ccf395de535e15ac1fd17cd569420736f5",
            ),
            "test": Source(
                "test_coco.txt",
                f"{_TEXYGEN}/testdata/test_coco.txt",
                536_184,
                "72e25c9fb4d2cd43182ac602c92f6ffc377762147f9709572943b0b09174bcae",
            ),
        }
    }
    HOMEPAGE = "https://github.com/geek-ai/Texygen"
    LICENSE = "MIT, as the repository states; the captions are COCO's, CC BY 4.0 by the terms of cocodataset.org"
    CITATION = """\
@inproceedings{lin2014microsoft,
  title     = {Microsoft COCO: Common Objects in Context},
  author    = {Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and Hays, James and Perona, Pietro and
               Ramanan, Deva and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  booktitle = {European Conference on Computer Vision},
  year      = {2014}
}
@inproceedings{zhu2018texygen,
  title     = {Texygen: A Benchmarking Platform for Text Generation Models},
  author    = {Zhu, Yaoming and Lu, Sidi and Zheng, Lei and Guo, Jiaxian and Zhang, Weinan and Wang, Jun and Yu, Yong},
  booktitle = {International ACM SIGIR Conference on Research and Development in Information Retrieval},
  year      = {2018}
}"""


class Emnlp2017News(_Lines):
    """News sentences, of the news task of EMNLP 2017's conference on machine translation, in two variants.

    `texygen`: about 270,000 to train on and 10,000 to test, 21 to 51 words. The checksum of the training file is not
    known here, so any file of that name is taken as it is.
    `stand_in`: where the training file is not to be had. The 10,000 validation sentences of "Language GANs Falling
    Short" to train on (5,570 types, 21 to 49 words by spaces) and 10,000 to test, which are Texygen's test sentences
    tokenised anew; the two share none. Numbers from it do not compare with published ones.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "emnlp_news.txt and test_emnlp.txt, or a smaller stand-in, gfs_valid.txt and gfs_test.txt, which are valid.txt "
        f"and test.txt of {_GFS}/real_data_experiments/data/news"
    )
    SOURCES = {
        "texygen": {
            "train": Source("emnlp_news.txt", f"{_TEXYGEN}/emnlp_news.txt"),
            "test": Source(
                "test_emnlp.txt",
                f"{_TEXYGEN}/testdata/test_emnlp.txt",
                1_742_757,
                "03c646d08f766f4140443db4419b1f0ee292bc0db514208873e9f2e166b95bd2",
            ),
        },
        "stand_in": {
            "train": Source(
                "gfs_valid.txt",
                f"{_GFS}/real_data_experiments/data/news/valid.txt",
                1_350_298,
                "e66a6fdd1f6cb15cb8f851051e5c49062270e0de1e69213289ce50b88a1d7281",
            ),
            "test": Source(
                "gfs_test.txt",
                f"{_GFS}/real_data_experiments/data/news/test.txt",
                1_326_837,
                "e1ba37a752bc8fba6d9743898b30bb36119cc665cd35b229060bf5f75a94837d",
            ),
        },
    }
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=variant) for variant in SOURCES]
    HOMEPAGE = "https://www.statmt.org/wmt17"
    LICENSE = "texygen: MIT, as the repository states; stand_in: its repository states none"
    CITATION = """\
@inproceedings{bojar2017findings,
  title     = {Findings of the 2017 Conference on Machine Translation (WMT17)},
  author    = {Bojar, Ond{\\v{r}}ej and others},
  booktitle = {Conference on Machine Translation},
  year      = {2017}
}
@inproceedings{caccia2020language,
  title     = {Language GANs Falling Short},
  author    = {Caccia, Massimo and Caccia, Lucas and Fedus, William and Larochelle, Hugo and Pineau, Joelle and
               Charlin, Laurent},
  booktitle = {International Conference on Learning Representations},
  year      = {2020}
}"""


class ChinesePoems(_Lines):
    """Chinese quatrains, the file that Texygen ships: 16,394, of which 15,993 differ; no test split.

    Each has 24 symbols with spaces between, 20 characters and 4 punctuation marks, of 4,771 types, simplified. The
    SeqGAN paper reports as many quatrains.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = "shi.txt"
    SOURCES = {
        "": {
            "train": Source(
                "shi.txt",
                f"{_TEXYGEN}/shi.txt",
                1_590_217,
                "ac03c5fbb07776f0e43cb1ccfc74732f5313ab3d832df81c8e0db327df35e666",
            )
        }
    }
    HOMEPAGE = "https://github.com/geek-ai/Texygen"
    LICENSE = "MIT, as the repository states"
    CITATION = """\
@inproceedings{zhang2014chinese,
  title     = {Chinese Poetry Generation with Recurrent Neural Networks},
  author    = {Zhang, Xingxing and Lapata, Mirella},
  booktitle = {Conference on Empirical Methods in Natural Language Processing},
  year      = {2014}
}"""


class TextLines(_Lines):
    """Text of the user's own, one sentence a line, under a digest of its content so that texts do not get mixed up."""

    SOURCES = {}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "train.txt and, where there is one, test.txt"

    @classmethod
    def manual_files(cls, variant: str, manual_dir: PathLike | None) -> dict[str, Path]:
        if manual_dir is None:
            return {}
        if Path(manual_dir).is_file():
            return {"train": Path(manual_dir)}
        train, test = (Path(manual_dir) / f"{split}.txt" for split in ("train", "test"))
        if not train.exists():
            raise DataError(
                f"{train}: no such file; text_lines takes it and, where there is one, {test.name} beside it"
            )
        return {"train": train} | ({"test": test} if test.exists() else {})


_BUILDERS: dict[str, type[_Lines]] = {
    builder.name: builder for builder in (CocoImageCaptions, Emnlp2017News, ChinesePoems, TextLines)
}


def place(data_dir: PathLike | None) -> Path:
    """Where prepared datasets are kept: `data_dir`, or the usual place of tensorflow_datasets."""
    try:
        return Path(data_dir or tfds.core.constants.DATA_DIR).expanduser().absolute()
    except RuntimeError:  # ~name
        raise DataError(f"data_dir is {shown(str(data_dir))}; there is no such user's home, give a folder") from None


def is_prepared(dataset: str, data_dir: PathLike | None = None) -> bool:
    """Whether a dataset, by its full name, can be read without its files."""
    name, _, variant = dataset.partition("/")
    return _folder(name, variant, data_dir).exists()


def _folder(name: str, variant: str, data_dir: PathLike | None) -> Path:
    """Where a dataset is, once it is prepared."""
    return place(data_dir) / name / variant / str(_BUILDERS[name].VERSION)


def _builder(name: str, variant: str, data_dir: PathLike | None) -> _Lines:
    config = tfds.core.BuilderConfig(name=variant) if name == TextLines.name else variant or None
    # The one format that works without TensorFlow and keeps every row.
    return _BUILDERS[name](data_dir=place(data_dir), config=config, file_format="array_record")


def _prepare(name: str, variant: str, manual_dir: PathLike | None, data_dir: PathLike | None) -> None:
    builder = _builder(name, variant, data_dir)
    builder.manual_dir = manual_dir
    config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=1)
    try:
        builder.download_and_prepare(download_config=config)
    except OSError:
        if not _folder(name, variant, data_dir).exists():  # else another process was faster, and its data is as good
            raise


def _read(builder: _Lines, split: str) -> list[str]:
    """The lines of a split. Raises any exception if they are not as `data.read_lines` gave them."""
    source = builder.as_data_source(split)
    if len(source) > data.MAX_TEXT:  # as it says itself
        raise DataError("too many lines")
    lines, total = [], 0
    for start in range(0, len(source), _READ):
        for example in source.__getitems__(range(start, min(start + _READ, len(source)))):
            line = example["text"].decode()
            total += len(line) + 1
            if len(line) > data.MAX_LINE or total > data.MAX_TEXT or not line.strip() or "\0" in line or "\n" in line:
                raise DataError("not a line of text")
            lines.append(line)
    return lines


def _digest(files: dict[str, Path]) -> str:
    return hashlib.sha256("".join(f"{split} {data.digest(files[split])}\n" for split in files).encode()).hexdigest()[
        :16
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what tfds says from the terminal: messages on standard output, bars on standard error, logged warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
