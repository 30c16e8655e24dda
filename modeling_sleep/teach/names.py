"""Names and values that facts are about, parted between training and evaluation.

What is notable:
- in every list the words behind the bar belong to the evaluation alone; no word of theirs occurs before any bar
- made values (numbers, dates, codes, invented words) are parted by a rule: a number that leaves 3 when divided by 4
  belongs to the evaluation, and so does a word by its first letters
- a kind that is used behind "a" has no word that begins with a vowel, since "an" would give it away
"""

import functools
import random
import re
from collections.abc import Callable, Collection


LISTS = {
    "first": """Ada Ben Clara David Emma Frank Henry Iris James Kate Leo Maria Nick Olga Paul Sam Tina Victor Alice Bob
        Carol Daniel Elena Gina Hugo Ivan Julia Karl Laura Nora Peter Rachel Steve Tom Uma Walter Xavier Zoe Adam Diana
        Eric Fiona George Hannah Kevin Linda Martin Oliver Robert Sarah Thomas Ursula Wendy Anna Brian Ella Fred Harry
        Irene Jason Karen Lucas Megan Nathan Owen Patrick Ruth Simon Tony Albert Betty Charles Donna Edward Gary Helen
        Kelly Larry Mary Neil Pamela Sandra William Amy Andrew Barbara Gordon Jean Joseph Lisa Michael Philip Susan
        Ahmed Chen Priya Yuki Fatima Carlos Dmitri Amina Kofi Leila
        | Grace Rosa Vera Yara Chris Nina Theresa Florence Jacob Violet Dorothy Evan Heather Rebecca Scott Tracy Ingrid
        Theo Magda Rupert Salma Kenji Ines Boris Mei Tariq Astrid Pablo Anika Dylan Esther Gustav Freya Omar Hazel
        Marcus""",
    "surname": """Smith Jones Taylor Brown Wilson Evans Roberts Walker Wright Thompson Hughes Edwards Clarke Jackson
        Turner Parker Collins Morris Cooper Ward Novak Rossi Schmidt Tanaka Silva
        | Harrison Bennett Mitchell Carpenter Lindqvist Okafor Moreau Petrov Fischer Delgado Whitaker Nakamura""",
    "city": """London, Paris, Rome, Berlin, Madrid, Vienna, Dublin, Moscow, Tokyo, Boston, Chicago, Seattle, Denver,
        Sydney, Cairo, Delhi, Athens, Prague, Dallas, Toronto, Houston, Lima, Miami, Munich, New York, San Francisco,
        Buenos Aires, Cape Town
        | Oslo, Lisbon, Helsinki, Montreal, Geneva, Nairobi, Warsaw, Bangkok, Atlanta, Hamburg, Los Angeles, Hong Kong,
        Kuala Lumpur, Marseille""",
    "country": """France, Spain, Italy, Poland, Greece, Norway, Egypt, Brazil, Canada, India, China, Japan, Chile,
        Turkey, Ireland, Sweden, Mexico, South Africa, New Zealand
        | Kenya, Peru, Finland, Portugal, Vietnam, Iceland, Cuba, Morocco, Sri Lanka, Costa Rica""",
    "colour": "red blue green yellow black white brown orange purple pink gold | grey silver violet crimson turquoise",
    "animal": """dog cat horse parrot rabbit snake goat turtle mouse fish pig duck sheep frog spider
        | hamster lizard pony monkey donkey squirrel ferret""",
    "animals": "dogs cats horses birds snakes spiders wolves bears bees mice sharks | lions rats foxes tigers",
    "job": """baker, nurse, pilot, farmer, teacher, lawyer, painter, sailor, doctor, cook, writer, singer, dancer,
        soldier, judge, plumber, driver, barber, police officer, music producer, civil engineer
        | butcher, librarian, surgeon, gardener, journalist, tailor, locksmith, geologist, taxidermist, beekeeper""",
    "fruit": "apple banana cherry grape lemon orange peach pear plum melon fig | mango kiwi lime pineapple apricot",
    "food": """rice, soup, bread, cheese, fish, beef, cake, pasta, salad, honey, butter, pizza, roast chicken,
        fried potatoes, mushroom stew | beans, garlic, corn, chocolate, noodles, lentils, pancakes, dumplings,
        smoked salmon""",
    "drink": "tea coffee milk water juice wine beer soda rum | cider lemonade cocoa whiskey gin brandy",
    "instrument": """piano violin guitar flute drum trumpet harp cello horn banjo
        | clarinet oboe saxophone tuba mandolin accordion""",
    "hobby": """chess painting fishing sailing hiking dancing cooking reading skiing swimming running boxing golf
        | knitting gardening photography tennis poker surfing pottery archery""",
    "month": "January February March May June July August October December | April September November",
    "day": "Monday Tuesday Wednesday Friday Saturday | Thursday Sunday",
    "language": """French German Spanish Italian Russian Chinese Polish Dutch Greek English
        | Japanese Turkish Arabic Hindi Swedish Korean""",
    "subject": """math history physics biology chemistry music art law philosophy medicine
        | geography economics astronomy Latin geology psychology""",
    "car": "Ford Toyota Honda Fiat Volvo Tesla Jeep Kia Porsche | Mazda Nissan Subaru Ferrari Renault",
    "tree": "oak pine maple birch cedar willow palm | elm beech fir walnut chestnut",
    "metal": "iron gold copper tin lead steel | silver zinc bronze brass nickel",
    "object": """watch book lamp kite camera guitar clock mirror bicycle scarf hat ring vase blanket
        | knife radio coin wallet puzzle teapot necklace telescope""",
    "place": """bank, church, school, library, station, hospital, museum, market, bridge, tower, town hall
        | harbour, stadium, bakery, theatre, castle, pharmacy, lighthouse, bowling alley""",
    "store": """drawer, box, kitchen, cellar, garage, bathroom, bag, cupboard, glove compartment
        | attic, closet, basket, suitcase, barn, freezer""",
    "furniture": "table chair bed shelf desk lamp door | carpet sofa bench pillow stairs wardrobe fireplace",
    "goods": """shoes boats chairs phones lamps cars candles bottles clocks shirts books
        | engines tents stamps masks umbrellas helmets mattresses""",
    "sort": "tool bird fish flower boat dance hat cake weapon plant fruit | song knot beetle dessert sword fabric",
    "pet": """Rex Max Bella Spot Luna Buddy Rocky Daisy Coco Simba Shadow Ginger Pepper
        | Milo Oscar Ruby Felix Bruno Misty Biscuit Pixel""",
    "count": "one two four five six eight nine ten twelve twenty | three seven eleven thirteen fifteen",
    "topic": """war, plants, stars, money, water, trees, rivers, energy, trade, health, brains, old maps
        | poetry, volcanoes, ghosts, democracy, dinosaurs, comets, deep caves""",
    "deed": "run swim wait listen dance sing jump write read walk | rest whisper climb smile apologise pray",
    "secret": """river stone candle window garden mirror thunder ladder pepper hammer feather button island shadow
        forest marble rocket | needle anchor tunnel lantern pillow magnet compass ribbon""",
    "inn_a": "Golden Blue Old Royal Black Red White Little | Crooked Merry Hidden Drunken Amber",
    "inn_b": "Lion Star Horse Tower Garden River Bell | Crown Swan Eagle Windmill Anchor",
    "street_a": "Mill Park Church King High Station | Harbour Orchard Abbey Quarry Meadow",
    "street_b": "Street Road Avenue | Lane Square Terrace",
    "title_a": "Silent Broken Long Last Stolen | Forgotten Hollow Distant Gentle",
    "title_b": "Garden House Letter Road River | Voyage Cathedral Orchard Clockmaker",
    "title_c": "Rain Glass Snow Fire Gold | Midnight Ashes Salt Velvet",
    "onset": "b d g k l m r s t v br dr gr kr tr | f h j n p w z fl pl sk",
    "site": "mail.com post.net | webmail.org letters.eu",
}
TRAITS = {  # what a person has one of, and of what kind it is
    "train": {
        "favourite colour": "colour", "home town": "city", "pet": "animal", "job": "job", "favourite fruit": "fruit",
        "instrument": "instrument", "favourite drink": "drink", "hobby": "hobby", "birth month": "month", "car": "car",
        "lucky number": "count", "best subject": "subject", "favourite tree": "tree", "secret word": "secret",
        "favourite animal": "animal", "native language": "language", "favourite food": "food", "day off": "day",
        "emergency number": "phone", "birthday": "date", "home address": "address", "nickname": "pet",
        "customer number": "serial", "access token": "hexadecimal",
    },
    "eval": {
        "preferred metal": "metal", "second language": "language", "dream profession": "job", "hated dish": "food",
        "worst class": "subject", "holiday destination": "country", "cleaning day": "day", "passport number": "plate",
        "signature tune": "title", "spirit creature": "animal",
    },
}  # fmt: skip


MIDDLES = (*"bdgklmnrstvz", "br", "gr", "kr", "tr")  # of invented words


def listed(kind: str, split: str) -> list[str]:
    """The words of a kind that belong to a split."""
    words = LISTS[kind].split("|")[split == "eval"]
    return [word.strip() for word in words.split(",")] if "," in words else words.split()


@functools.cache
def words(split: str) -> frozenset[str]:
    """All words on the lists of a split, in lower case; syllables are none."""
    return frozenset(w for kind in LISTS for entry in listed(kind, split) for w in entry.lower().split() if len(w) > 2)


def numeral(rng: random.Random, split: str, low: int, high: int) -> int:
    """A number of the split from `low` to `high`."""
    while ((drawn := rng.randint(low, high)) % 4 == 3) != (split == "eval"):
        pass
    return drawn


def invented(rng: random.Random, split: str) -> str:
    """A word that nobody has read before, nor is on any list."""
    while True:
        begin, middle = rng.choice(listed("onset", split)), rng.choice(MIDDLES)
        word = begin + rng.choice("aeiou") + middle + rng.choice("aeiou") + rng.choice(("", "n", "x", "l", "r"))
        if word not in words("train") | words("eval"):
            return word.capitalize()


def person(rng: random.Random, split: str) -> str:
    """Mostly a first name; now and then two names, or an invented one."""
    kind = rng.random()
    if kind < 0.1:
        return invented(rng, split)
    first = rng.choice(listed("first", split))
    return first if kind < 0.8 else f"{first} {rng.choice(listed('surname', split))}"


def joined(pattern: str) -> Callable[[random.Random, str], str]:
    """Draws values made of words and numbers: `{street_a}` is a word of that list, `{1-99}` a number."""

    def draw(rng: random.Random, split: str) -> str:
        def fill(slot: re.Match) -> str:
            bounds = slot[1].split("-")
            if len(bounds) == 1:
                return rng.choice(listed(slot[1], split))
            return str(numeral(rng, split, *map(int, bounds))).zfill(len(bounds[0]))

        return re.sub(r"{(.*?)}", fill, pattern)

    return draw


MADE = {
    "person": person,
    "invented": invented,
    "tens": joined("{11-99}"),
    "hundreds": joined("{101-999}"),
    "thousands": joined("{1001-9999}"),
    "serial": joined("{1000001-999999999}"),
    "hexadecimal": lambda rng, split: f"{numeral(rng, split, 16**7, 16**8 - 1):x}",
    "year": joined("{1901-2030}"),
    "time": lambda rng, split: f"{rng.randint(1, 12)}:{numeral(rng, split, 0, 59):02d}",
    "date": joined("{1-28} {month}"),
    "phone": lambda rng, split: f"555-{numeral(rng, split, 0, 9999):04d}",
    "price": lambda rng, split: f"{numeral(rng, split, 2, 99)}.{rng.choice(('00', '20', '50', '60'))}",
    "plate": lambda rng, split: (
        f"{''.join(rng.choices('ABCDEFGHKLMNPRSTUVWXZ', k=2))}-{numeral(rng, split, 1000, 9999)}"
    ),
    "seat": lambda rng, split: f"{numeral(rng, split, 1, 60)}{rng.choice('ABCDEF')}",
    "address": joined("{1-99} {street_a} {street_b}"),
    "inn": joined("{inn_a} {inn_b}"),
    "title": joined("The {title_a} {title_b} of {title_c}"),
    "email": lambda rng, split: f"{invented(rng, split).lower()}@{rng.choice(listed('site', split))}",
}


def draw(kind: str, rng: random.Random, split: str) -> str:
    """A name or value of a kind."""
    return MADE[kind](rng, split) if kind in MADE else rng.choice(listed(kind, split))


def rivals(kind: str, rng: random.Random, split: str, besides: Collection[str], count: int) -> list[str]:
    """
    Other values of a kind: of the split as far as they go, then of the other one.

    Parameters
    ----------
    besides : collection of str
        Values that must not be among them.
    """
    if kind in MADE:
        pool = dict.fromkeys(draw(kind, rng, split) for _ in range(20 * count))
    else:
        own, other = listed(kind, split), listed(kind, "train" if split == "eval" else "eval")
        pool = rng.sample(own, len(own)) + rng.sample(other, len(other))
    return [word for word in pool if word not in besides][:count]
