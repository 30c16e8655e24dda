"""Facts to teach with: nothing of the evaluation in training, windows exactly full, answers that hold their values."""

import dataclasses
import itertools
import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from examples.finetune_trainer import new_tokenizer
from modeling_sleep import SleepConfig, SleepForCausalLM
from modeling_sleep.teach import evaluate, names, natural_text
from modeling_sleep.teach.chat import Chat
from modeling_sleep.teach.facts import AMID, BEGINNINGS, PATTERNS, draw_fact, question_of, unit, units, value_slot
from modeling_sleep.teach.filler import MODULES, SOURCES, sentences
from modeling_sleep.teach.lengths import over_facts
from modeling_sleep.teach.patterns import EVAL, JOINED, SLOT, TRAIN, kind_of, parse


L = 160  # a small vocabulary takes many tokens for a sentence
TEMPLATE = "{% for turn in messages %}{{ '<' + turn['role'] + '>\n' + turn['content'] + '<end>\n' }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = new_tokenizer([*sentences("prose", "train"), *sentences("manual", "train")], vocab_size=1500)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module", params=["template", "plain"])
def chat(request, tokenizer):
    if request.param == "template":
        return Chat(tokenizer)
    silent = new_tokenizer(sentences("prose", "train"), vocab_size=1500)
    return Chat(silent)


@pytest.fixture(scope="module")
def some(chat):
    """Units of every split."""
    return {split: [unit(split, 0, index, chat, L) for index in range(40)] for split in PATTERNS}


def story(chat, drawn):
    return chat.tokenizer.decode(list(itertools.chain(*drawn.story)))


def words_of(text):
    return set(re.findall(r"\w+", text.lower()))


def test_words_of_the_evaluation_are_on_no_list_of_training():
    assert names.words("train").isdisjoint(names.words("eval"))
    trained, own = (
        {word for pattern in side for words in pattern.words.values() for word in words} for side in (TRAIN, EVAL)
    )
    assert not trained & own
    assert not own & names.words("train") and not trained & names.words("eval")
    assert set(names.TRAITS["train"]).isdisjoint(names.TRAITS["eval"])


def test_patterns_of_the_evaluation_are_its_own():
    assert len(TRAIN) >= 60 and len(EVAL) >= 12
    assert len({pattern.id for pattern in TRAIN + EVAL + JOINED}) == len(TRAIN + EVAL + JOINED)
    assert all(fact.count(".") == 2 for pattern in JOINED for fact in pattern.told)

    def lines(patterns):
        told = (line for pattern in patterns for line in pattern.told + pattern.later + pattern.assistant)
        asked = itertools.chain.from_iterable(pair for pattern in patterns for pair in pattern.asked)
        return {SLOT.sub("", line) for line in (*told, *asked)}

    assert lines(TRAIN).isdisjoint(lines(EVAL))


def test_no_question_has_a_word_that_might_be_its_answer():
    for pattern in TRAIN + EVAL + JOINED:
        for question, answer in pattern.asked:
            kind = kind_of(value_slot(answer))
            if kind in names.LISTS:
                values = {value.lower() for split in ("train", "eval") for value in names.listed(kind, split)}
                assert not words_of(SLOT.sub(" ", question)) & values, question


@pytest.mark.parametrize("split", ["train", "eval"])
def test_words_of_lists_are_on_one_line(split):
    for kind in names.LISTS:
        assert all(word == " ".join(word.split()) for word in names.listed(kind, split)), kind


@pytest.mark.parametrize("kind", names.MADE)
def test_made_values_of_the_splits_differ(kind):
    rng = random.Random(0)
    trained, own = ({names.draw(kind, rng, split) for _ in range(2000)} for split in ("train", "eval"))
    assert trained.isdisjoint(own)


def test_filler_needs_no_tk():
    """Many installations of Python are without, Debian's for one."""
    program = (
        "import sys, importlib\nsys.modules['tkinter'] = None\nfor name in sys.argv[1:]: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", program, *MODULES.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", SOURCES)
def test_filler_is_parted_and_has_no_word_of_the_evaluation_in_training(source):
    trained, own = sentences(source, "train"), sentences(source, "eval")
    assert len(trained) > 20 and len(own) > 5
    assert set(trained).isdisjoint(own)
    assert all(names.words("eval").isdisjoint(words_of(sentence)) for sentence in trained)


def test_units_of_training_have_no_value_or_word_of_the_evaluation(chat, some):
    values = {question.value for split in ("known", "eval") for drawn in some[split] for question in drawn.questions}
    for drawn in some["train"]:
        assert not names.words("eval") & words_of(story(chat, drawn))
        assert values.isdisjoint(question.value for question in drawn.questions)
    asked = {split: {q.pattern for drawn in some[split] for q in drawn.questions} for split in PATTERNS}
    assert asked["train"].isdisjoint(asked["eval"]) and asked["known"] <= {pattern.id for pattern in TRAIN}


@pytest.mark.parametrize("pattern", TRAIN + EVAL + JOINED, ids=lambda pattern: pattern.id)
def test_every_line_of_a_pattern_renders(pattern):
    rng, split = random.Random(pattern.id), "train" if pattern in TRAIN else "eval"
    seen = set()
    for _ in range(60):
        fact = draw_fact(rng, split, pattern)
        for telling in fact.tellings:
            seen.add(SLOT.sub("", telling.text))
            assert not re.search(r"\b[Aa] [aeiou]", telling.text), telling.text
            for slot in {value_slot(answer) for _, answer in fact.asked}:
                begin, end = telling.spans[slot]
                assert telling.text[begin:end] in (fact.slots[slot], (fact.before or fact.slots)[slot])
        last = fact.tellings[-1]
        for question, answer in fact.asked:
            value = fact.slots[value_slot(answer)]
            assert last.text[slice(*last.spans[value_slot(answer)])] == value
            assert value in question_of(answer, fact.slots) and "{" not in question_of(question, fact.slots)
        if fact.before is not None:
            assert all(fact.before[value_slot(answer)] != fact.slots[value_slot(answer)] for _, answer in fact.asked)
    assert len(seen) > 1


def test_a_space_before_a_number_is_found_with_it():
    """Tokenizers that part digits write it as a token of its own. Not taught, a model says a word in its place."""
    tokenizer = new_tokenizer(sentences("prose", "train"), vocab_size=400)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), backend.pre_tokenizer])
    chat, seen = Chat(tokenizer), Counter()
    questions = [question for index in range(60) for question in unit("train", 0, index, chat, L).questions]
    for question in questions:
        if not re.fullmatch(r"[0-9]+", question.value):
            continue
        general = question.answers["general"]
        is_spaced = question.told[1] - question.told[0] > len(question.value)
        text = tokenizer.decode(general.ids[slice(*general.value)])
        assert text == " " * is_spaced + question.value
        assert tokenizer.decode(general.ids[: general.given]) == " The answer is"
        assert question.answers["own"].value == general.value
        seen[is_spaced] += 1
    assert seen[True] > seen[False] > 0


@pytest.mark.parametrize("split", PATTERNS)
def test_windows_are_full_and_values_stand_where_they_are_said_to(chat, some, split):
    for drawn in some[split]:
        assert [len(window) for window in drawn.story] == [L, L]
        assert drawn.questions
        for question in drawn.questions:
            begin, end = question.told
            assert question.value in chat.tokenizer.decode(drawn.story[question.window][begin:end])
            assert question.since == len(drawn.story) - question.window
            for beginning in BEGINNINGS:
                answer = question.answers[beginning]
                first, last = answer.value
                assert len(question.prompt) + len(answer.ids) <= L
                assert question.value in chat.tokenizer.decode(answer.ids[first:last])
                assert question.value not in chat.tokenizer.decode(answer.ids[:first])
                begins = answer.given, chat.behind_space(answer.ids, answer.given)
                assert answer.given == 0 if beginning == "own" else first in begins
                assert chat.tokenizer.decode(answer.ids).endswith(chat.end.rstrip() or "\n")
            assert question.answers["general"].text == f"The answer is {question.value}."
            assert question.text in chat.tokenizer.decode(question.prompt)


@pytest.mark.parametrize("split", PATTERNS)
def test_questions_stand_behind_other_text_of_their_window(chat, split):
    behind = Counter()
    for index in range(12):
        plain, drawn = unit(split, 0, index, chat, L), unit(split, 0, index, chat, L, amid=1.0)
        assert drawn.story == plain.story
        for alone, question in zip(plain.questions, drawn.questions, strict=True):
            behind[question.behind] += 1
            assert alone.behind == "nothing" and question.answers == alone.answers
            assert max(len(question.prompt) + len(answer.ids) for answer in question.answers.values()) <= L
            prompt = chat.tokenizer.decode(question.prompt)
            assert prompt.count(question.text) == 1 and not evaluate.mentions(
                prompt.split(question.text)[0], question.value
            )
            assert (question.prompt == alone.prompt) == (question.behind == "nothing")
    assert all(behind[kind] > 5 for kind in AMID) and behind["nothing"] < 0.2 * behind.total(), behind


@pytest.mark.parametrize("split", PATTERNS)
def test_windows_cut_facts_and_questions_and_say_so(chat, split):
    seen = Counter()
    for index in range(60):
        drawn = unit(split, 0, index, chat, L, amid=0.5, cut=True)
        assert {len(window) for window in drawn.story} == {L}
        for question in drawn.questions:
            seen[question.cut] += 1
            text = [*itertools.chain(*drawn.story), *question.prompt]
            begin, end = (question.window * L + place for place in question.told)
            assert question.value in chat.tokenizer.decode(text[begin:end])
            assert question.since == len(text) // L - begin // L > 0
            assert question.text in chat.tokenizer.decode(question.prompt)
            values = [x.value[1] for x in question.answers.values()]
            if len(text) // L < (len(text) + max(values) - 1) // L:  # within the answer
                assert question.cut in ("question", "both")
            if question.told[1] > L:
                assert question.cut in ("fact", "both")
    assert seen["nothing"] > 20 and seen["question"] > 20 and seen["fact"] > 3, seen


@pytest.mark.parametrize("split", PATTERNS)
def test_a_question_has_one_answer_and_rivals_that_differ(some, split):
    shared = 0
    for drawn in some[split]:
        texts = [question.text for question in drawn.questions]
        assert len(set(texts)) == len(texts)
        kinds = [question.kind for question in drawn.questions]
        shared += len(kinds) - len(set(kinds))
        for question in drawn.questions:
            assert question.candidates[0] == question.value
            assert len(question.candidates) == len(set(question.candidates)) > 4
            assert not any(word.lower() in question.text.lower().split() for word in question.candidates)
    assert shared > 20  # many facts of a text are mistaken for one another easily


def test_the_last_word_counts(chat, monkeypatch):
    monkeypatch.setattr("modeling_sleep.teach.facts.CHANGED", 1.0)
    asked = [
        (drawn, question)
        for drawn in (unit("train", 1, i, chat, L) for i in range(10))
        for question in drawn.questions
    ]
    changed = 0
    for drawn, question in asked:
        before = [*itertools.chain(*drawn.story[: question.window]), *drawn.story[question.window][: question.told[0]]]
        changed += question.candidates[1] in chat.tokenizer.decode(before)
    assert changed > 0.7 * len(asked)  # the others are told by the assistant, once


@pytest.mark.programs
def test_the_same_index_is_the_same_unit_in_another_process(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "modeling_sleep.teach.facts", "--tokenizer", str(tmp_path)]
    command += ["--show", "3", "--window-size", str(L), "--seed", "5", "--split", "known"]
    environment = os.environ | {"PYTHONHASHSEED": "5"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    chat = Chat(tokenizer)
    for drawn in itertools.islice(units("known", 5, tokenizer, L), 3):
        assert drawn == unit("known", 5, drawn.index, chat, L) != unit("known", 6, drawn.index, chat, L)
        for question in drawn.questions:
            assert f"{question.pattern}, window {question.window}: {question.text}\n" in printed


def test_so_many_facts_stand_in_a_story(chat):
    for count in (10, 60):
        drawn = over_facts("known", 0, chat, L, 5, count)
        assert sum(len(one.questions) for one in drawn) == 5
        assert len(unit("known", 0, 0, chat, L, windows=len(drawn[0].story), facts=count).questions) >= 0.8 * count


def test_what_cannot_be_told_is_refused(tokenizer):
    chat = Chat(tokenizer)
    with pytest.raises(ValueError, match="no split 'test'"):
        unit("test", 0, 0, chat, L)
    with pytest.raises(ValueError, match="too short for this chat template"):
        unit("train", 0, 0, chat, 8)
    with pytest.raises(ValueError, match="no source 'novels'"):
        unit("train", 0, 0, chat, L, sources=["novels"])
    with pytest.raises(ValueError, match="needs a line that tells its fact"):
        parse("a.b\n    Where? -> There, in [{city}].")
    with pytest.raises(ValueError, match="must have its value"):
        parse("a.b\n    In {city}.\n    Where? -> In {city}.")
    with pytest.raises(ValueError, match="neither a kind"):
        parse("a.b\n    In {nowhere}.\n    Where? -> In [{nowhere}].")
    with pytest.raises(ValueError, match="'thing' is its own word"):
        parse("a.b\n    {thing} is one of bin, box\n    In a {thing}.\n    Where? -> In a [{thing}].")


def a_question(**changes):
    chat = Chat(new_tokenizer(sentences("prose", "train"), vocab_size=600))
    question = unit("eval", 0, 0, chat, 400).questions[0]
    return dataclasses.replace(question, **changes)


@pytest.mark.parametrize(
    "answer, right",
    [
        ("Ada lives in Oslo.", True),
        ("oslo", True),
        ("Oslo, not Lisbon", True),
        ("Lisbon or Oslo", False),
        ("Osloer Strasse", False),
        ("I do not know.", False),
        ("Since Geneva is asked for: Oslo", True),
    ],
)
def test_an_answer_in_the_models_own_words_is_right_if_it_names_the_value_first(answer, right):
    question = a_question(text="Does Geneva come before?", value="Oslo", candidates=("Oslo", "Lisbon", "Geneva"))
    assert evaluate.names(answer, question) == right


@pytest.mark.parametrize(
    "answer, right",
    [
        ("It is 42.", True),
        ("420", False),
        ("42.99", False),
        ("7:42", False),
        ("41 or 42", False),
        ("In room 7: 42", True),
    ],
)
def test_other_numbers_are_rivals_of_a_number(answer, right):
    question = a_question(text="What is asked in room 7?", value="42", candidates=("42", "17"))
    assert evaluate.names(answer, question) == right


@pytest.mark.parametrize(
    "answer, repeated",
    [
        ("Paris. Paris", True),
        ("The sea is vast, the sea is vast", True),
        ("I'm Rex. My name is Rex.", True),
        ("The cat saw the dog.", False),
        ("", False),
    ],
)
def test_repetition_is_seen(answer, repeated):
    assert evaluate.repeats(answer, "Rex") == repeated


def test_the_nearest_sentence_is_the_one_with_the_rare_words(tokenizer):
    documents = ["The dog of the man is old.", "Ada lives in Oslo.", "Ben lives in Rome, in the old town of the man."]
    scores = {place: score for score, place in evaluate.bm25("Where does Ada live, in the old town?", documents)}
    assert max(scores, key=scores.get) == 2
    scores = {place: score for score, place in evaluate.bm25("Where is Ada?", documents)}
    assert max(scores, key=scores.get) == 1 and scores[2] == 0
    chat = Chat(tokenizer)
    found = 0
    for drawn in (unit("eval", 0, index, chat, L) for index in range(10)):
        for question in drawn.questions:
            ids = evaluate.nearest(chat, 3)(drawn, question)
            assert len(ids) < L
            found += question.value in chat.tokenizer.decode(ids)
    assert found > 30


def test_counts_come_with_wilsons_interval():
    rows = [{"reader": "a", "split": "eval", "beginning": "own", "right": i < 8} for i in range(10)]
    assert evaluate.table(rows).splitlines()[-1] == "| a | eval | 8 of 10 = 80 % (49-94) |"


@pytest.fixture(scope="module")
def models(tokenizer):
    torch.manual_seed(0)
    sizes = dict(vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
    sizes |= dict(intermediate_size=64, pad_token_id=0, eos_token_id=1, bos_token_id=None)
    original = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, initializer_range=0.3)).eval()
    layers = dict(num_hidden_layers=2, layer_types=["sleep_attention", "linear_attention"], window_size=L)
    sleeping = SleepForCausalLM(SleepConfig(**sizes, **layers, initializer_range=0.3)).eval()
    return original, sleeping


@pytest.fixture
def brief(monkeypatch):
    """Answers of few tokens, to few questions."""
    monkeypatch.setattr(evaluate, "LENGTH", 6)
    monkeypatch.setattr(evaluate, "MEASURED", evaluate.MEASURED[:2])


def test_any_model_answers_behind_a_cache_as_without_one(tokenizer, models, brief):
    chat = Chat(tokenizer)
    drawn = unit("eval", 0, 0, chat, L)
    before = list(itertools.chain(*drawn.story))
    for model in models:
        reader = evaluate.Reader("whole", model, chat)
        question = drawn.questions[0]
        with torch.no_grad():
            cache = reader.read(before)
            behind = reader.logits(question.prompt, cache)
            torch.testing.assert_close(
                behind, reader.logits(before + question.prompt)[len(before) :], atol=1e-4, rtol=1e-4
            )
            torch.testing.assert_close(behind, reader.logits(question.prompt, cache))  # and the cache stays as it was
            assert reader.write(question.prompt, cache, before) == reader.write([*before, *question.prompt])


def test_every_reader_gives_a_row_for_each_question_and_beginning(tokenizer, models, brief):
    chat = Chat(tokenizer)
    asked = evaluate.evaluation_units("eval", 0, chat, L, questions=4)
    assert sum(len(drawn.questions) for drawn in asked) == 4
    forgotten = []
    readers = [
        evaluate.Reader("memory", models[1], chat, forget=forgotten.append),
        evaluate.Reader("alone", models[0], chat, evaluate.alone),
        evaluate.Reader("last", models[0], chat, evaluate.last(evaluate.tokens_of(5000, models[0]))),
    ]
    rows = [row for reader in readers for row in evaluate.answers(reader, asked)]
    assert len(rows) == 3 * 4 * 3 and len(forgotten) == len(asked)
    assert len(evaluate.last(7)(asked[0], None)) == 7
    assert evaluate.tokens_of(513, models[0]) == 2  # 2 layers, 2 heads, 16 numbers, keys and values, 4 bytes
    lines = evaluate.table(rows).splitlines()
    assert lines[0] == "| reader | split | question | general | own |" and len(lines) == 5


def test_what_is_right_is_what_greedy_search_writes(tokenizer, models):
    chat = Chat(tokenizer)
    reader = evaluate.Reader("alone", models[0], chat, evaluate.alone)
    question = unit("eval", 0, 0, chat, L).questions[0]
    answer = question.answers["question"]
    first, end = answer.value
    ids = list(question.prompt) + answer.ids[:first]
    with torch.no_grad():
        for _ in range(end - first):
            ids.append(reader.logits(ids)[-1].argmax().item())
        written = ids[len(question.prompt) + first :]
        assert not evaluate.finds(reader, question, "question", None)
        would = dataclasses.replace(answer, ids=answer.ids[:first] + written + answer.ids[end:])
        question.answers["question"] = would
        assert evaluate.finds(reader, question, "question", None)


def test_perplexity_by_windows(tokenizer, models):
    chat = Chat(tokenizer)
    texts = [natural_text.natural_text(chat, "eval", 3 * L, index) for index in range(2)]
    reader = evaluate.Reader("original", models[0], chat)
    whole, far = (natural_text.perplexity(reader, texts, L, kept) for kept in (None, 3 * L))
    alone = natural_text.perplexity(reader, texts, L, 0)
    assert whole["tokens"] == 2 * 2 * (L - 1)
    assert whole["later"] == pytest.approx(far["later"], rel=1e-4) != pytest.approx(alone["later"], rel=1e-4)
    assert whole["first"] == pytest.approx(alone["first"], rel=1e-4)


def test_everyday_questions_are_answered_in_the_first_window_as_the_original_does(tokenizer, models, brief):
    chat = Chat(tokenizer)
    rows = list(
        evaluate.everyday(evaluate.Reader("original", models[0], chat), models[0], [unit("eval", 0, 0, chat, L)])
    )
    assert len(rows) == 2 * len(evaluate.MEASURED)
    assert all(row["same"] for row in rows if row["behind"] == 0)
