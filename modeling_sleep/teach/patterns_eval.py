"""Patterns for the evaluation alone: nothing is trained on them. See `patterns.py` for their format."""

from .patterns import parse


EVAL = parse(r"""
pet.called
    {thing} is one of stallion, terrier, robot, kitten, canary, foal
    My {thing} is called {pet}.
    What is my {thing} called? -> Your {thing} is called [{pet}].
origin.from
    {person} comes from {country}.
    Where does {person} come from? -> {person} comes from [{country}].
hidden.under
    {thing} is one of diary, treasure, ball, whistle, spare battery
    The {thing} is kept under the {furniture}.
    Where is the {thing} kept? -> The {thing} is kept under the [{furniture}].
bitten.by
    Yesterday {person} was bitten by a {animal}.
    What was {person} bitten by? -> {person} was bitten by a [{animal}].
talk.about
    The talk that {person} gave was about {topic}.
    What was {person}'s talk about? -> {person}'s talk was about [{topic}].
bus.leaves
    The bus to {invented} leaves at {time}.
    When does the bus to {invented} leave? -> The bus to {invented} leaves at [{time}].
lost.money
    {person} lost {hundreds} pounds in the casino.
    How much did {person} lose in the casino? -> {person} lost [{hundreds}] pounds.
owe.you
    You owe {person} {tens} coins.
    How many coins do you owe {person}? -> I owe {person} [{tens}] coins.
deleted.by
    The file {invented} was deleted by {person}.
    Who deleted the file {invented}? -> The file {invented} was deleted by [{person}].
flight.postponed
    {person}'s flight was planned for {day2}, but it was delayed until {day}.
    On which day is {person}'s flight? -> {person}'s flight is on [{day}].
vase.broke
    {thing} is one of aquarium, windscreen, trophy, greenhouse
    Not {person2} but {person} broke the {thing}.
    Who broke the {thing}? -> The {thing} was broken by [{person}].
life.two
    {person} grew up in {country}, and later kept bees in {city}.
    Where did {person} grow up? -> {person} grew up in [{country}].
    Where did {person} keep bees? -> {person} kept bees in [{city}].
found.while
    {thing} is one of desert, canyon, jungle, swamp, quarry
    While walking in the {thing} I found a {object}.
    What did I find in the {thing}? -> In the {thing} you found a [{object}].
quality.record
    name={person}; {trait}={value}\n
    Which {trait} is on record for {person}? -> The {trait} on record for {person} is [{value}].
quality.section
    [{person}]\n{trait}: {value}\n
    What is the entry "{trait}" of {person}? -> The entry "{trait}" of {person} is [{value}].
quality.row
    {person}\t{trait}\t{value}\n
    Look up the {trait} of {person}. -> The {trait} of {person}: [{value}].
constant.code
    {thing} is one of MAX_DEPTH, N_HEADS, BATCH, WARMUP, SEED
    const {thing} = {thousands};\n
    Which number is the constant {thing}? -> The constant {thing} is [{thousands}].
invitation.letter
    Dear Sir,\nthe funeral of {person} will take place on {date}.\nYours faithfully\n
    When will the funeral of {person} take place? -> The funeral of {person} will take place on [{date}].
chat.dialogue
    - Hello {person}, what would you like to have?\n- A glass of {drink}, please.\n
    What would {person} like to have? -> {person} would like to have [{drink}].
fax.number
    Please fax the papers to {person}: {phone}.
    What is {person}'s fax number? -> {person}'s fax number is [{phone}].
parcel.deliver
    Deliver the parcel for {person} to {address}.
    Where should the parcel for {person} be delivered? -> The parcel for {person} should be delivered to [{address}].
novel.wrote
    {person} wrote the novel "{title}".
    Which novel did {person} write? -> {person} wrote the novel "[{title}]".
ticket.assistant
    {thing} is one of ferry, opera, circus, zoo, ballet
    assistant: I bought your {thing} ticket. It cost ${price}.
    How much was my {thing} ticket? -> Your {thing} ticket was $[{price}].
holiday.spanish
    {person} viaja mañana a {country}.
    ¿Adónde viaja {person}? -> {person} viaja a [{country}].
grows.garden
    Behind {person}'s garage grows a tall {tree}.
    Which tree grows behind {person}'s garage? -> Behind {person}'s garage grows a tall [{tree}].
""")
