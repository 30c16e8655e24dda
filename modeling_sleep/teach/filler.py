"""Text that stands between facts, from five sources, parted between training and evaluation.

    manual       sentences of Python's reference manual
    docstrings   what modules of Python's library say of themselves and of what is in them
    licences     of installed packages
    prose        made here, from sentences with gaps
    talk         a user and an assistant about nothing in particular

What is notable:
- the first three come with every installation; nothing of them is copied into this repository
- a page, a module, a sentence of a licence, a frame of prose, an exchange belongs to one split, and no sentence of
  training has a word that belongs to the evaluation (`names.py`)
- what the first three hold depends on the versions installed; prose and talk are the same everywhere
"""

import functools
import importlib
import importlib.metadata
import inspect
import pydoc_data.topics
import random
import re
import zlib
from collections.abc import Iterator, Sequence

from .names import words


SOURCES = ("manual", "docstrings", "licences", "prose", "talk")
SENTENCE = re.compile(r"(?!Copyright|All rights)[A-Z][^*|=<>_\\]{20,240}[.]")
SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z])|\n\s*\n")
# None that needs Tk, which many installations of Python are without.
MODULES = """
    argparse ast asyncio base64 bisect calendar codecs collections configparser contextlib copy csv dataclasses
    datetime decimal difflib dis email fileinput fnmatch fractions ftplib functools gettext glob gzip hashlib heapq
    html http.client imaplib inspect io ipaddress itertools json locale logging mailbox mimetypes multiprocessing
    numbers operator optparse os pathlib pdb pickle platform poplib pprint queue random re sched secrets selectors
    shelve shlex shutil smtplib socket sqlite3 ssl statistics string subprocess tarfile tempfile textwrap threading
    timeit tokenize trace traceback types typing unittest urllib.request uuid wave weakref xml.dom zipfile
"""
PACKAGES = "torch numpy transformers tokenizers safetensors huggingface_hub packaging regex tqdm PyYAML filelock"
FRAMES = """The {a} was {b} that morning, and nobody in the {c} said a word about it.
Some people think that a {b} {a} is worth the trouble; others prefer to wait.
When the {a} came to the {c}, everyone stopped for a moment and then went on.
It is hard to say why the {a} looked so {b}, but it did.
Between the {c} and the {a} there was nothing but {b} grass.
Nobody had seen a {a} like this before, and it was {b} in every way.
They talked about the {a} for an hour, until the {c} grew {b}.
In those days the {a} was thought to be {b}, which it never was.
A {b} wind came over the {c} and shook the {a}.
You could hear the {a} long before you saw the {c}.
After a while the {a} became {b}, as such things do.
Most of the {a} had been repaired, but the rest was {b}.
We walked past the {c} twice without noticing the {a}.
If the {a} is {b}, it is better to leave it where it is.
The report says that the {a} near the {c} needs more care.
Every year the {a} attracts visitors who find it {b}.
There is a {b} story about the {a} and the {c}, but it is too long for today.
What matters is not the {a} itself but how {b} it makes us feel.
At the edge of the {c} stood a {a}, {b} and quite alone.
The old plan for the {a} was dropped because it seemed too {b}.
Nothing in the {c} was as {b} as the {a} at its door.
He looked at the {a} and wondered who had made it so {b}.
The newspaper wrote about the {a} again, in a {b} tone.
A little later the {c} was empty, and the {a} was gone.
Whether the {a} is {b} depends on whom you ask.
By noon the {c} was full of noise, and the {a} could not be found.""".splitlines()
GAPS = {
    "a": "fence wagon signpost barrel wheel rope ceiling path letterbox curtain stove lawn roof chimney cart bell",
    "b": "strange quiet heavy useful cheap dusty bright narrow common beautiful damp noisy fragile slow modest",
    "c": "valley corridor village courtyard office hall street field waiting-room cottage avenue backyard workshop",
}
TALK = """Hello! | Hello! How can I help you today?
What is the capital of France? | The capital of France is Paris.
What is 2 + 3? | 2 + 3 = 5.
How are you? | I am doing well, thank you for asking.
Can you tell me a joke? | Why did the bicycle fall over? It was two-tired.
Thanks, that helps. | You are welcome! Let me know if you need anything else.
How many days are there in a week? | There are 7 days in a week.
What do plants need to grow? | Plants need light, water, air and nutrients from the soil.
I am a bit tired today. | I am sorry to hear that. A short walk may help.
What colour is the sky? | On a clear day, the sky is blue.
Is it going to rain? | I cannot look at the weather, but a forecast can tell you.
What is the opposite of hot? | The opposite of hot is cold.
Could you say that in other words? | Of course. Which part should I put differently?
Who wrote Romeo and Juliet? | Romeo and Juliet was written by William Shakespeare.
Give me a word that rhymes with cat. | A word that rhymes with cat is hat.
What does the word "huge" mean? | The word "huge" means very large.
I have a lot to do this week. | Then it may help to make a list and begin with what is urgent.
Do you like books? | I do not read for pleasure, but I can talk about many books.
How do I boil an egg? | Put the egg into boiling water for about eight minutes, then cool it.
What is a noun? | A noun is a word that names a person, a place, a thing or an idea.
That is all for now. | Alright. Have a nice day!
Good morning. | Good morning! What would you like to talk about?
What is the largest ocean? | The largest ocean is the Pacific Ocean.
How many legs does an insect have? | An insect has six legs.
I see. | Good. Is there anything else you would like to know?
What is water made of? | Water is made of hydrogen and oxygen.
Let me think about it. | Take your time.
What is the plural of mouse? | The plural of mouse is mice.
Why do leaves fall? | Trees shed their leaves to save water when it gets cold.
Name a planet. | Mars is a planet.
Are you there? | Yes, I am here.
What is the past tense of go? | The past tense of go is went.
How long does light take from the sun to us? | Light takes about eight minutes from the sun to us.
Can fish breathe air? | Most of them cannot; they breathe with gills.
Tell me something nice. | Somebody is glad that you are around.
What is the first letter of the alphabet? | The first letter of the alphabet is A.""".splitlines()


def belongs_to(text: str, split: str) -> bool:
    """Whether a document belongs to the evaluation ("eval") or to training: a hash of it decides."""
    return (zlib.crc32(text.encode()) % 4 == 0) == (split != "train")


def allowed(sentence: str, split: str) -> bool:
    """Whether a split may have the sentence among its filler."""
    return split != "train" or words("eval").isdisjoint(re.findall(r"\w+", sentence.lower()))


def sentences_of(documents: list[str], split: str) -> list[str]:
    """The sentences of all documents, without those that are tables or code, each once."""
    sentences = (" ".join(text.split()) for document in documents for text in SENTENCE_END.split(document))
    return list(dict.fromkeys(text for text in sentences if SENTENCE.fullmatch(text) and allowed(text, split)))


@functools.cache
def sentences(source: str, split: str) -> Sequence[str]:
    """
    What a source has for a split, in the order in which it stands there.

    Parameters
    ----------
    source : str
        One of `SOURCES`.
    split : str
        "train", or any other for what training never shows.

    Returns
    -------
    sequence of str
        Sentences; for talk "user's | assistant's".

    Raises
    ------
    ValueError
        If there is no such source, or the installation has no text of this kind.
    """
    if source not in SOURCES:
        raise ValueError(f"There is no source {source!r} of filler; there are {', '.join(SOURCES)}.")
    found = {
        "manual": _manual,
        "docstrings": _docstrings,
        "licences": _licences,
        "prose": _prose,
        "talk": _talk,
    }[source](split)
    if split != "train":  # two modules may say the same
        trained = set(sentences(source, "train"))
        found = [text for text in found if text not in trained]
    if not found:
        raise ValueError(f"This installation has no text for {source!r}; leave it out of `sources`.")
    return found


def _manual(split: str) -> list[str]:
    pages = pydoc_data.topics.topics
    return sentences_of([pages[name] for name in sorted(pages) if belongs_to(name, split)], split)


def _docstrings(split: str) -> list[str]:
    documents = []
    for name in MODULES.split():
        if belongs_to(name, split):
            module = importlib.import_module(name)
            members = [
                member for key, member in sorted(vars(module).items()) if inspect.isclass(member) or callable(member)
            ]
            documents += [inspect.getdoc(part) or "" for part in (module, *members)]
    return sentences_of(documents, split)


def _licences(split: str) -> list[str]:
    texts = {}
    for name in PACKAGES.split():
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if (
                re.match(r"(licen[cs]e|notice|copying)", file.name, re.IGNORECASE)
                and (path := file.locate()).is_file()
            ):
                texts[path.read_text(errors="ignore")[:50_000]] = None
    # by sentence, not by document: few licences differ, and one that is shared would be in both splits
    return [text for text in sentences_of(list(texts), split) if belongs_to(text, split)]


def _prose(split: str) -> list[str]:
    rng = random.Random(f"prose/{split}")
    frames = [frame for frame in FRAMES if belongs_to(frame, split)]
    made = {}
    for _ in range(4000):
        made[rng.choice(frames).format(**{gap: rng.choice(choice.split()) for gap, choice in GAPS.items()})] = None
    return [text for text in made if allowed(text, split)]


def _talk(split: str) -> list[str]:
    return [line for line in TALK if belongs_to(line, split) and allowed(line, split)]


def stream(rng: random.Random, split: str, sources: Sequence[str] = SOURCES, run: int = 6) -> Iterator[str]:
    """Sentences without end: a few that follow one another in some source, then a few of some other."""
    while True:
        pool = sentences(rng.choice(sources), split)
        place = rng.randrange(len(pool))
        for step in range(rng.randint(1, run)):
            yield pool[(place + step) % len(pool)]
