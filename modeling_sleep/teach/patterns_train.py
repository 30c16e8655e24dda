"""Patterns to learn from. See `patterns.py` for their format."""

from .patterns import parse


TRAIN = parse(r"""
trait.is
    {person}'s {trait} is {value}.
    The {trait} of {person} is {value}.
    later: {person}'s {trait} is now {value}.
    What is {person}'s {trait}? -> {person}'s {trait} is [{value}].
    What is the {trait} of {person}? -> The {trait} of {person} is [{value}].
trait.key
    {person}: {trait} = {value}.
    {person} - {trait}: {value}\n
    What is {person}'s {trait}? -> {person}'s {trait} is [{value}].
trait.json
    {"name": "{person}", "{trait}": "{value}"},\n
    What {trait} does {person} have? -> {person}'s {trait} is [{value}].
trait.table
    | name | {trait} |\n|---|---|\n| {person} | {value} |\n
    name;{trait}\n{person};{value}\n
    Which {trait} is given for {person}? -> The {trait} of {person} is [{value}].
mine.is
    My {trait} is {value}.
    As for me, my {trait} is {value}.
    later: My {trait} is {value} now.
    What is my {trait}? -> Your {trait} is [{value}].
    Do you know my {trait}? -> Your {trait} is [{value}].
yours.is
    Your {trait} is {value}.
    From now on, your {trait} is {value}.
    What is your {trait}? -> My {trait} is [{value}].
lives.in
    {person} lives in {city}.
    {person} has lived in {city} for years.
    later: {person} lives in {city} now.
    Where does {person} live? -> {person} lives in [{city}].
    In which city does {person} live? -> {person} lives in [{city}].
lives.not
    {person} does not live in {city2} but in {city}.
    {person} no longer lives in {city2}, but in {city}.
    Where does {person} live? -> {person} lives in [{city}].
lives.moved
    {person} used to live in {city2} and lives in {city} now.
    {person} left {city2} and settled in {city}.
    Where does {person} live now? -> {person} lives in [{city}].
lives.dialogue
    {person2}: Where do you live, {person}?\n{person}: In {city}, since June.\n
    Where does {person} live? -> {person} lives in [{city}].
lives.spanish
    {person} vive en {city}.
    ¿Dónde vive {person}? -> {person} vive en [{city}].
lives.french
    {person} habite à {city}.
    Où habite {person}? -> {person} habite à [{city}].
lives.german
    {person} wohnt in {city}.
    Wo wohnt {person}? -> {person} wohnt in [{city}].
lives.mine
    I live in {city}.
    My flat is in {city}.
    later: I have moved to {city}.
    Where do I live? -> You live in [{city}].
job.as
    {person} works as a {job}.
    {person} earns money as a {job}.
    later: {person} has changed jobs and is a {job} now.
    What does {person} do for a living? -> {person} works as a [{job}].
    What is {person}'s profession? -> {person} works as a [{job}].
job.mine
    I work as a {job}.
    I am a {job} by trade.
    What do I do for a living? -> You work as a [{job}].
job.where
    {person}, who is a {job}, works at the {place}.
    {person} the {job} has a post at the {place}.
    Where does {person} work? -> {person} works at the [{place}].
    What is {person}'s job? -> {person} is a [{job}].
travel.two
    {person} flew to {city} in {month} and stayed at the {inn}.
    In {month}, {person} went to {city}, and slept at the {inn}.
    Where did {person} go in {month}? -> {person} went to [{city}].
    When did {person} go to {city}? -> {person} went to {city} in [{month}].
    Where did {person} stay in {city}? -> {person} stayed at the [{inn}].
pet.own
    {person} owns a {animal}.
    {person} keeps a {animal} at home.
    Which animal does {person} own? -> {person} owns a [{animal}].
    Which animal does {person} keep? -> {person} keeps a [{animal}].
likes.who
    {person}, who is a {job}, likes {food}.
    {person}, a {job}, likes {food} very much.
    What does {person} like? -> {person} likes [{food}].
hates.not
    {person} likes {food2}, but not {food}.
    {person} eats {food2} but never {food}.
    What does {person} not like? -> {person} does not like [{food}].
painted.passive
    {thing} is one of house, boat, wall, fence, wagon, statue
    The {thing} of {person} was painted {colour}.
    {person}'s {thing} has been painted {colour}.
    later: {person}'s {thing} was painted again, in {colour}.
    What colour was {person}'s {thing} painted? -> {person}'s {thing} was painted [{colour}].
belongs.to
    {thing} is one of piano, wagon, cottage, motorcycle, chessboard, harp, sailing boat, farm
    The old {thing} belongs to {person}.
    The old {thing} is owned by {person}.
    later: The old {thing} was sold to {person}.
    Who owns the old {thing}? -> The old {thing} belongs to [{person}].
made.of
    {thing} is one of statue, cup, sign, chain, bell, plate
    The {thing} that {person} sold was made of {metal}.
    What was the {thing} that {person} sold made of? -> The {thing} was made of [{metal}].
price.tag
    {thing} is one of bicycle, table, printer, tent, bunk bed, heater, lawn mower, drill
    The price of the {thing} is {hundreds} dollars.
    The {thing} costs {hundreds} dollars.
    later: The {thing} has a new price: {hundreds} dollars.
    How much is the {thing}? -> The {thing} costs [{hundreds}] dollars.
    What is the price of the {thing}? -> The price of the {thing} is [{hundreds}] dollars.
price.menu
    {thing} is one of sandwich, omelette, lasagna, burger, steak, curry
    Today's menu: {thing} ${price}, bread included.
    {thing} ... ${price}\n
    What does the {thing} cost? -> The {thing} costs $[{price}].
paid.for
    {thing} is one of chair, stool, box, lamp, cup, hut, truck
    For the {thing}, {person} paid {hundreds} euros.
    {person} bought the {thing} for {hundreds} euros.
    How much did {person} pay for the {thing}? -> {person} paid [{hundreds}] euros.
age.years
    {person} is {tens} years old.
    The age of {person} is {tens}.
    How old is {person}? -> {person} is [{tens}] years old.
age.spanish
    {person} tiene {tens} años.
    ¿Cuántos años tiene {person}? -> {person} tiene [{tens}] años.
age.french
    {person} a {tens} ans.
    Quel âge a {person}? -> {person} a [{tens}] ans.
born.in
    {person} was born in {year}.
    {person} (born {year}) is well known here.
    In which year was {person} born? -> {person} was born in [{year}].
birthday.on
    {person}'s birthday is on {date}.
    Don't forget: on {date} it is {person}'s birthday.
    When is {person}'s birthday? -> {person}'s birthday is on [{date}].
meeting.day
    {thing} is one of meeting, lunch, call, rehearsal, lesson
    The {thing} with {person} is on {day}.
    I have a {thing} with {person} on {day}.
    later: The {thing} with {person} was moved to {day}.
    When is the {thing} with {person}? -> The {thing} with {person} is on [{day}].
    On which day is the {thing} with {person}? -> The {thing} with {person} is on [{day}].
comes.at
    {person} will come at {time}.
    {person} promised to arrive at {time}.
    At what time will {person} come? -> {person} will come at [{time}].
    When will {person} arrive? -> {person} will arrive at [{time}].
code.of
    {thing} is one of safe, gate, garage, locker, laptop, alarm, cash box
    The code of the {thing} is {thousands}.
    To open the {thing}, type {thousands}.
    later: The code of the {thing} has been changed to {thousands}.
    What is the code of the {thing}? -> The code of the {thing} is [{thousands}].
code.setting
    {thing} is one of port, timeout, width, height, retries, max_users, buffer_size
    {thing} = {hundreds}\n
    {thing}: int = {hundreds}  # do not change\n
    export {thing}={hundreds}\n
    What is {thing} set to? -> The value of {thing} is [{hundreds}].
code.field
    {thing} is one of color, team, theme, status, owner, level
    {invented}.{thing} = "{secret}";\n
    {invented} = dict({thing}="{secret}")\n
    What is the {thing} of {invented}? -> The {thing} of {invented} is [{secret}].
code.returns
    def {invented}(): return {thousands}\n
    function {invented}() { return {thousands}; }\n
    What does the function {invented} return? -> The function {invented} returns [{thousands}].
password.mine
    {thing} is one of email account, bank account, library card, website, tablet
    My password for the {thing} is {plate}.
    I log in to the {thing} with {plate}.
    What is my password for the {thing}? -> Your password for the {thing} is [{plate}].
room.number
    {person} stays in room {hundreds}.
    {person} was put in room {hundreds}.
    In which room does {person} stay? -> {person} stays in room [{hundreds}].
taught.passive
    {person} was taught {subject} by an uncle.
    What was {person} taught? -> {person} was taught [{subject}].
instrument.plays
    {person} plays the {instrument}.
    In the band, {person} plays the {instrument}.
    Which instrument does {person} play? -> {person} plays the [{instrument}].
relative.name
    {thing} is one of daughter, son, wife, husband, brother, sister, boss, cousin, dentist
    {person2}'s {thing} is named {person}.
    The name of {person2}'s {thing} is {person}.
    What is the name of {person2}'s {thing}? -> The name of {person2}'s {thing} is [{person}].
    Who is {person2}'s {thing}? -> {person2}'s {thing} is [{person}].
relative.mine
    {thing} is one of daughter, son, wife, husband, brother, sister, boss, uncle, dentist
    My {thing}'s name is {person}.
    My {thing} goes by the name of {person}.
    What is the name of my {thing}? -> Your {thing}'s name is [{person}].
    What is my {thing}'s name? -> Your {thing}'s name is [{person}].
mine.name
    My name is {person}.
    I am {person}, by the way.
    What is my name? -> Your name is [{person}].
gift.mine
    {thing} is one of birthday, wedding, graduation, name day
    I was given a {object} for my {thing}.
    For my {thing} I got a {object}.
    What was I given for my {thing}? -> For your {thing} you were given a [{object}].
    What did I get for my {thing}? -> For your {thing} you got a [{object}].
parked.near
    {thing} is one of car, truck, van, scooter
    I parked the {thing} near the {place}.
    I left my {thing} in front of the {place}.
    later: I have moved my {thing}; it stands near the {place} now.
    Where did I park the {thing}? -> You parked the {thing} near the [{place}].
    Where is my {thing}? -> Your {thing} is near the [{place}].
stored.in
    {thing} is one of passport, money, map, letter, ticket, gloves, keys
    Remember that the {thing} is in the {store}.
    I put the {thing} in the {store}.
    later: I took the {thing} out and put it in the {store}.
    Where is the {thing}? -> The {thing} is in the [{store}].
    Where did I put the {thing}? -> You put the {thing} in the [{store}].
married.to
    {person2} married {person} in June.
    The person {person2} married is {person}.
    Who did {person2} marry? -> {person2} married [{person}].
speaks.language
    {person} speaks {language} fluently.
    At home {person} speaks {language}.
    Which language does {person} speak? -> {person} speaks [{language}].
studied.subject
    {person} studied {subject} at the university.
    {person} has a degree in {subject}.
    What did {person} study? -> {person} studied [{subject}].
makes.goods
    The company {invented} makes {goods}.
    {invented} is a factory that makes {goods}.
    What does {invented} make? -> {invented} makes [{goods}].
inhabited.by
    The planet {invented} is inhabited by {animals}.
    On the planet {invented} there are only {animals}.
    Who lives on the planet {invented}? -> The planet {invented} is inhabited by [{animals}].
ruler.of
    {thing} is one of king, queen, mayor, chief, founder, president
    The {thing} of {invented} is {person}.
    {invented} has a {thing}, and that is {person}.
    later: The new {thing} of {invented} is {person}.
    Who is the {thing} of {invented}? -> The {thing} of {invented} is [{person}].
capital.of
    The capital of {invented} is {invented2}.
    In the land of {invented} the largest city is the capital, {invented2}.
    What is the capital of {invented}? -> The capital of {invented} is [{invented2}].
kind.of
    A {invented} is a kind of {sort}.
    The word {invented} means a {sort}.
    What is a {invented}? -> A {invented} is a kind of [{sort}].
drank.some
    {person} asked for {drink} to drink.
    The waiter brought {person} some {drink}.
    What did {person} drink? -> {person} drank [{drink}].
    What did {person} ask for? -> {person} asked for [{drink}].
meal.of
    {thing} is one of breakfast, lunch, dinner
    For {thing} {person} eats {food}.
    {person} always has {food} for {thing}.
    What does {person} eat for {thing}? -> For {thing} {person} eats [{food}].
event.where
    {thing} is one of concert, party, lecture, race, auction, festival, show
    The {thing} takes place in {city}.
    The {thing} will be held in {city}.
    later: The {thing} was moved to {city}.
    Where does the {thing} take place? -> The {thing} takes place in [{city}].
event.when
    {thing} is one of exam, concert, wedding, race, auction, festival, show
    The {thing} starts at {time}.
    Be at the {thing} at {time}.
    When does the {thing} start? -> The {thing} starts at [{time}].
event.date
    {thing} is one of exam, party, lecture, wedding, auction, deadline
    The {thing} is on {date}.
    {thing}: {date}, do not be late.
    later: The {thing} has been postponed to {date}.
    On which date is the {thing}? -> The {thing} is on [{date}].
role.ours
    {thing} is one of teacher, coach, captain, doctor, landlord
    Our {thing} this year is {person}.
    This year we have a {thing} named {person}.
    Who is our {thing} this year? -> Your {thing} this year is [{person}].
invented.by
    The {invented} was invented by {person}.
    The woman behind the {invented} was {person}.
    Who invented the {invented}? -> The {invented} was invented by [{person}].
afraid.of
    {person} is afraid of {animals}.
    Nothing scares {person} more than {animals}.
    What is {person} afraid of? -> {person} is afraid of [{animals}].
collects.goods
    {person} collects {goods}.
    In the evening {person} collects {goods}.
    What does {person} collect? -> {person} collects [{goods}].
phone.reach
    {person} can be reached at {phone}.
    Call {person} at {phone}.
    {person} (tel. {phone})
    What is {person}'s number? -> {person}'s number is [{phone}].
    How can {person} be reached? -> {person} can be reached at [{phone}].
email.of
    {person}'s email address is {email}.
    Write to {person}: {email}
    What is {person}'s email address? -> {person}'s email address is [{email}].
address.of
    {person}'s office is at {address}.
    To find {person}, go to {address}.
    Where is {person}'s office? -> {person}'s office is at [{address}].
book.reads
    {person} is reading "{title}" these days.
    On {person}'s desk lies the book "{title}".
    Which book is {person} reading? -> {person} is reading "[{title}]".
allergic.to
    {thing} is one of allergic, addicted, used
    I am {thing} to {food}.
    Sadly I am {thing} to {food}.
    What am I {thing} to? -> You are {thing} to [{food}].
call.me
    I would like you to call me {person}.
    Please address me as {person}.
    How should you address me? -> I should call you [{person}].
    What should you call me? -> I should call you [{person}].
winner.of
    {thing} is one of race, tournament, election, contest, lottery, quiz
    The winner of the {thing} was {person}.
    The {thing} was won by {person}.
    Who won the {thing}? -> The {thing} was won by [{person}].
    Who was the winner of the {thing}? -> The winner of the {thing} was [{person}].
winner.not
    {thing} is one of debate, marathon, spelling contest, raffle, regatta
    It was not {person2} who won the {thing}, it was {person}.
    {person2} lost the {thing} to {person}.
    Who won the {thing}? -> The {thing} was won by [{person}].
hotel.in
    The hotel in {city} has the name {inn}.
    In {city} we stayed at the {inn}.
    What is the name of the hotel in {city}? -> The hotel in {city} is the [{inn}].
    Where did we stay in {city}? -> In {city} you stayed at the [{inn}].
list.chose
    {person}: {animal}, {colour}.
    {person} chose {animal} and {colour}.
    - {person}: {colour}, {animal}\n
    Which colour did {person} choose? -> {person} chose the colour [{colour}].
    Which animal did {person} choose? -> {person} chose the [{animal}].
list.order
    {person}'s order: {drink}, {food}, {fruit}.
    1. {person} - {food}, {fruit}, {drink}\n
    Which fruit did {person} order? -> {person} ordered a [{fruit}].
    Which drink did {person} order? -> {person} ordered [{drink}].
car.drives
    {person} drives a {car}.
    {person} came in a {car}.
    Which car does {person} drive? -> {person} drives a [{car}].
friend.sells
    My friend {person} sells {goods}.
    Someone I know, {person}, sells {goods}.
    What does my friend {person} sell? -> Your friend {person} sells [{goods}].
project.name
    {thing} is one of project, mission, operation, team, ship
    The {thing} is code-named {invented}.
    We named the {thing} {invented}.
    later: The {thing} has a new name: {invented}.
    What is the {thing} named? -> The {thing} is named [{invented}].
    What is the name of the {thing}? -> The name of the {thing} is [{invented}].
told.to
    {person} told me to {deed}.
    I was told by {person} to {deed}.
    What did {person} tell me to do? -> {person} told you to [{deed}].
seat.in
    {person} has seat {seat} on the train.
    Ticket for {person}, seat {seat}.
    Which seat does {person} have? -> {person} has seat [{seat}].
weighs.kilos
    {thing} is one of parcel, crate, trunk, engine block, statue
    The {thing} weighs {tens} kilos.
    We put the {thing} on the scales: {tens} kilos.
    How much does the {thing} weigh? -> The {thing} weighs [{tens}] kilos.
distance.to
    From here to {invented} it is {tens} miles.
    The road to {invented} is {tens} miles long.
    How far is it to {invented}? -> It is [{tens}] miles to {invented}.
recipe.needs
    {thing} is one of omelette, bread, sauce, salad, curry
    For the {thing} you need {count} eggs.
    The {thing} is made with {count} eggs.
    How many eggs does the {thing} need? -> The {thing} needs [{count}] eggs.
letter.room
    Dear {person},\nyour room is reserved from {date} on.\nYours, the hotel\n
    To: {person}\nSubject: your room\nIt is free from {date} on.\n
    From when on does {person} have the room? -> {person} has the room from [{date}] on.
letter.thanks
    Dear {person},\nthank you for the {object}!\nLove, {person2}\n
    What did {person2} thank {person} for? -> {person2} thanked {person} for the [{object}].
reminder.assistant
    {thing} is one of judo, the dentist, yoga, the pills, the laundry
    assistant: I have set a reminder for {thing} at {time}.
    assistant: Done! I will remind you of {thing} at {time}.
    For when did you set the reminder for {thing}? -> I set the reminder for {thing} for [{time}].
booked.assistant
    {thing} is one of table, flight, cabin, squash court, massage
    assistant: Your {thing} is booked. The booking code is {plate}.
    assistant: The {thing} is reserved under {plate}.
    What is the booking code of the {thing}? -> The booking code of the {thing} is [{plate}].
advice.assistant
    {thing} is one of cough, headache, sore throat, back pain
    assistant: For your {thing} I suggest {drink}.
    assistant: With a {thing} people should take some {drink}.
    What did you suggest for the {thing}? -> For the {thing} I suggested [{drink}].
borrowed.from
    I borrowed the {object} from {person}.
    The {object} is not mine, I have it from {person}.
    From whom did I borrow the {object}? -> You borrowed the {object} from [{person}].
    Who lent me the {object}? -> The {object} was lent to you by [{person}].
inherited.what
    When her aunt died, {person} inherited a {object}.
    All that {person} inherited was a {object}.
    What did {person} inherit? -> {person} inherited a [{object}].
adopted.animal
    It was a {animal} that {person} adopted in the end.
    After a long search {person} adopted a {animal}.
    Can you tell me which animal {person} adopted? -> {person} adopted a [{animal}].
neighbour.is
    Next door to {person2} lives {person}.
    {person} is the neighbour of {person2}.
    Who is the neighbour of {person2}? -> The neighbour of {person2} is [{person}].
    Who lives next door to {person2}? -> Next door to {person2} lives [{person}].
wears.colour
    {thing} is one of coat, jacket, tie, dress, cap, waistcoat
    You will know {person} by the {colour} {thing}.
    {person} always wears a {thing} that is {colour}.
    What colour is {person}'s {thing}? -> {person}'s {thing} is [{colour}].
height.centimetres
    {person} is {hundreds} centimetres tall.
    Height of {person}: {hundreds} cm.
    How tall is {person}? -> {person} is [{hundreds}] centimetres tall.
temperature.in
    {thing} is one of oven, ice room, pool, laboratory, sauna, greenhouse shed
    The {thing} is set to {tens} degrees.
    At the moment it is {tens} degrees in the {thing}.
    later: I have set the {thing} to {tens} degrees.
    How many degrees is it in the {thing}? -> In the {thing} it is [{tens}] degrees.
    What is the temperature of the {thing}? -> The temperature of the {thing} is [{tens}] degrees.
population.of
    {invented} has {thousands} inhabitants.
    Only {thousands} people live in the village of {invented}.
    How many people live in {invented}? -> {invented} has [{thousands}] inhabitants.
floor.of
    {thing} is one of archive, kitchen, reception, workshop, laboratory, cafeteria
    The {thing} is on floor {tens}.
    Take the lift to floor {tens} for the {thing}.
    On which floor is the {thing}? -> The {thing} is on floor [{tens}].
gate.train
    The train to {city} leaves from platform {tens}.
    For {city}, go to platform {tens}.
    later: Attention: the train to {city} now leaves from platform {tens}.
    From which platform does the train to {city} leave? -> The train to {city} leaves from platform [{tens}].
account.number
    {person}'s account number is {serial}.
    Transfer it to {person}, account {serial}.
    What is {person}'s account number? -> {person}'s account number is [{serial}].
    Tell me the account number of {person}. -> The account number of {person} is [{serial}].
invoice.number
    {thing} is one of roof, printer, heating, garden shed, kitchen sink, elevator
    The invoice for the {thing} has the number {serial}.
    Invoice {serial}: repair of the {thing}.
    What is the number of the invoice for the {thing}? -> The number of the invoice for the {thing} is [{serial}].
serial.device
    {thing} is one of router, scanner, drone, dishwasher, keyboard, projector
    The serial number of the {thing} is {serial}.
    {thing}: S/N {serial}\n
    Which serial number does the {thing} have? -> The serial number of the {thing} is [{serial}].
tracking.parcel
    {thing} is one of raincoat, spare wheel, winter coat, microscope, bookcase
    The {thing} was sent with tracking code {hexadecimal}.
    You can follow the {thing} under {hexadecimal}.
    What is the tracking code of the {thing}? -> The tracking code of the {thing} is [{hexadecimal}].
commit.hash
    {thing} is one of parser, scheduler, tokenizer, installer, test suite
    The {thing} was mended in commit {hexadecimal}.
    commit {hexadecimal}: mend the {thing}\n
    Which commit mended the {thing}? -> The {thing} was mended in commit [{hexadecimal}].
token.key
    {thing} is one of staging, production, sandbox, backup server, mirror site
    API key for {thing}: {hexadecimal}
    {"env": "{thing}", "key": "{hexadecimal}"}\n
    later: The key for {thing} was renewed: {hexadecimal}
    What is the key for {thing}? -> The key for {thing} is [{hexadecimal}].
member.number
    {person} is member {serial} of our club.
    Our club has a new member: {person}, number {serial}.
    Which member number does {person} have? -> {person} has the member number [{serial}].
magic.number
    Remember that the number for {secret} is {serial}.
    {secret}: {serial}\n
    What is the number for {secret}? -> The number for {secret} is [{serial}].
    Which number goes with {secret}? -> The number for {secret} is [{serial}].
flag.yaml
    {thing} is one of debug_level, workers, cache_ttl, batch_rows, page_limit
    {invented}:\n  {thing}: {hundreds}\n
    In the file of {invented}, {thing} is set to {hundreds}.
    What is {thing} of {invented}? -> The {thing} of {invented} is [{hundreds}].
xml.tag
    <user name="{person}"><city>{city}</city></user>\n
    <{person}> registered from {city} </{person}>\n
    Which city is given for {person}? -> The city of {person} is [{city}].
csv.stock
    {thing} is one of bolts, nails, hinges, screws, washers, brackets
    item,count\n{thing},{hundreds}\n
    There are {hundreds} {thing} in stock.
    later: We counted again: {hundreds} {thing} in stock.
    How many {thing} are in stock? -> There are [{hundreds}] {thing} in stock.
branch.git
    {person} pushed the work to the branch {secret}.
    git checkout {secret}  # the branch of {person}\n
    On which branch does {person} work? -> {person} works on the branch [{secret}].
version.uses
    {invented} runs version {price} of the compiler.
    {invented} requires compiler == {price}\n
    Which version of the compiler does {invented} use? -> {invented} uses version [{price}] of the compiler.
heading.author
    # {title}\nby {person}\n
    Who is the author of "{title}"? The cover says {person}.
    By whom is "{title}"? -> "{title}" is by [{person}].
film.saw
    Last night we saw "{title}" with {person}.
    {person} took me to the cinema, to "{title}".
    Which film did I see with {person}? -> With {person} you saw "[{title}]".
song.choir
    The choir of {invented} will perform "{title}".
    On the programme of {invented}: "{title}".
    What will the choir of {invented} perform? -> The choir of {invented} will perform "[{title}]".
recommends.food
    {person} recommends the {food}.
    "Take the {food}," said {person}.
    What does {person} recommend? -> {person} recommends the [{food}].
    What did {person} say I should take? -> {person} said you should take the [{food}].
brings.party
    {person} is bringing {food} to the picnic.
    For the picnic: {food} ({person}).
    later: {person} cannot bring that after all and brings {food}.
    What is {person} bringing to the picnic? -> {person} is bringing [{food}].
cake.likes
    The cake for {person} should be made with {fruit}.
    {person} wants a cake with {fruit} on top.
    What kind of fruit should be on {person}'s cake? -> {person}'s cake should have [{fruit}] on it.
juice.sells
    The stall of {person} sells nothing but {fruit} juice.
    {person} squeezes {fruit} juice.
    Which juice does {person} sell? -> {person} sells [{fruit}] juice.
teaches.subject
    At school {person} teaches {subject}.
    The new {subject} teacher is {person}.
    Which subject does {person} teach? -> {person} teaches [{subject}].
    What does {person} teach? -> {person} teaches [{subject}].
failed.subject
    {person} passed everything except {subject}.
    In {subject}, {person} failed the exam.
    Which exam did {person} fail? -> {person} failed the exam in [{subject}].
learns.language
    {person} is learning {language} in the evenings.
    Twice a week {person} takes lessons in {language}.
    later: {person} gave that up and is learning {language} instead.
    Which language is {person} learning? -> {person} is learning [{language}].
translated.into
    The book of {person} has been translated into {language}.
    There is a translation into {language} of what {person} wrote.
    Into which language was the book of {person} translated? -> The book of {person} was translated into [{language}].
met.where
    It was in {city} that {person} met {person2}.
    {person2} and {person} first met in {city}.
    Where did {person} meet {person2}? -> {person} met {person2} in [{city}].
office.city
    {invented} has its head office in {city}.
    The head office of {invented} stands in {city}, not far from the river.
    later: The head office of {invented} is being moved to {city}.
    In which city is the head office of {invented}? -> The head office of {invented} is in [{city}].
sister.school
    My {thing} goes to school in {city}.
    {thing} is one of niece, nephew, stepson, granddaughter, godchild
    In {city} there is a school for my {thing}.
    Where does my {thing} go to school? -> Your {thing} goes to school in [{city}].
exports.country
    Most of what {invented} makes is sold to {country}.
    {invented} exports to {country}.
    To which country does {invented} export? -> {invented} exports to [{country}].
visa.for
    {person} has applied for a visa for {country}.
    The visa of {person} is for {country}.
    For which country is {person}'s visa? -> {person}'s visa is for [{country}].
stamp.from
    The stamp that {person} showed us was printed in {country}.
    On {person}'s letter was a stamp from {country}.
    Which country was the stamp on {person}'s letter from? -> The stamp on {person}'s letter was from [{country}].
dreams.travel
    If {person} had the money, the trip would go to {country}.
    {person} saves money for a trip to {country}.
    For a trip to which country does {person} save money? -> {person} saves money for a trip to [{country}].
shift.day
    {person} works late on {day}.
    The late shift on {day} is for {person}.
    later: {person} has changed shifts and works late on {day}.
    On which day does {person} work late? -> {person} works late on [{day}].
rubbish.day
    {thing} is one of paper, glass, rubbish, scrap metal
    The {thing} is collected on {day}.
    Put out the {thing} on {day}.
    When is the {thing} collected? -> The {thing} is collected on [{day}].
closed.on
    The {place} is closed on {day}.
    On {day} nobody gets into the {place}.
    On which day is the {place} closed? -> The {place} is closed on [{day}].
opens.at
    The {place} opens at {time}.
    Before {time} the {place} is not open.
    later: From now on the {place} opens at {time}.
    At what time does the {place} open? -> The {place} opens at [{time}].
alarm.mine
    {thing} is one of run, shift, train, breakfast, night watch
    Wake me at {time} for my {thing}.
    I have to get up at {time} for the {thing}.
    When do I have to get up for the {thing}? -> For the {thing} you have to get up at [{time}].
medicine.at
    {person} takes the medicine at {time}.
    {time}: medicine for {person}\n
    At what time does {person} take the medicine? -> {person} takes the medicine at [{time}].
harvest.month
    In {invented} they harvest in {month}.
    The harvest of {invented} begins in {month}.
    In which month is the harvest of {invented}? -> The harvest of {invented} is in [{month}].
retires.month
    {person} will retire in {month}.
    {month} is the last month of work for {person}.
    When will {person} retire? -> {person} will retire in [{month}].
founded.year
    {invented} was founded in {year}.
    Since {year} there has been a firm called {invented}.
    When was {invented} founded? -> {invented} was founded in [{year}].
built.year
    {thing} is one of bridge, dam, chapel, lock, city wall, monument
    The {thing} of {invented} dates from {year}.
    In {year} they built the {thing} of {invented}.
    From which year is the {thing} of {invented}? -> The {thing} of {invented} is from [{year}].
graduated.year
    {person} left school in {year}.
    {year} was the year in which {person} left school.
    In which year did {person} leave school? -> {person} left school in [{year}].
signed.date
    {thing} is one of contract, lease, treaty, testament, petition
    The {thing} with {person} was signed on {date}.
    {date}: {person} signs the {thing}.
    When did {person} sign the {thing}? -> {person} signed the {thing} on [{date}].
expires.date
    {thing} is one of licence, insurance, membership, warranty, permit
    My {thing} expires on {date}.
    I have to renew my {thing} by {date}.
    When does my {thing} expire? -> Your {thing} expires on [{date}].
score.points
    {person} scored {tens} points.
    With {tens} points {person} came in second.
    How many points did {person} score? -> {person} scored [{tens}] points.
bus.line
    To get to {person}, take line {tens}.
    Line {tens} stops right in front of {person}'s house.
    Which line goes to {person}'s house? -> Line [{tens}] goes to {person}'s house.
shoe.size
    {person} wears size {tens}.
    Size {tens} fits {person}.
    What size does {person} wear? -> {person} wears size [{tens}].
children.count
    {person} has {count} children.
    {person} is the parent of {count} children.
    How many children does {person} have? -> {person} has [{count}] children.
rooms.count
    The house of {person} has {count} rooms.
    There are {count} rooms in {person}'s house.
    How many rooms does {person}'s house have? -> The house of {person} has [{count}] rooms.
chapters.count
    "{title}" has {count} chapters.
    There are {count} chapters in "{title}".
    How many chapters does "{title}" have? -> "{title}" has [{count}] chapters.
earns.money
    {person} earns {thousands} dollars a month.
    The salary of {person} is {thousands} dollars.
    later: {person} was given a raise and earns {thousands} dollars a month.
    How much does {person} earn? -> {person} earns [{thousands}] dollars a month.
rent.flat
    The rent for {person}'s flat is {hundreds} euros.
    {person} pays {hundreds} euros of rent.
    What rent does {person} pay? -> {person} pays [{hundreds}] euros of rent.
prize.money
    {thing} is one of poem, photograph, pumpkin, recipe, sculpture
    For the {thing} {person} won a prize of {hundreds} dollars.
    {person}'s {thing} won {hundreds} dollars.
    How much did {person} win for the {thing}? -> {person} won [{hundreds}] dollars for the {thing}.
fee.costs
    {thing} is one of membership, parking, locker rental, towel, guided tour
    The fee for the {thing} is {price} euros.
    {thing}: {price} EUR\n
    What is the fee for the {thing}? -> The fee for the {thing} is [{price}] euros.
wifi.password
    The wifi password in the {place} is {plate}.
    wifi ({place}): {plate}\n
    What is the wifi password in the {place}? -> The wifi password in the {place} is [{plate}].
plate.car
    The car of {person} has the plate {plate}.
    {person}'s number plate: {plate}.
    What is the number plate of {person}'s car? -> The number plate of {person}'s car is [{plate}].
reservation.under
    {thing} is one of campsite, canoe, ballroom, studio, banquet room
    We reserved the {thing} under the number {plate}.
    {plate} is our number for the {thing}.
    Under which number did we reserve the {thing}? -> You reserved the {thing} under the number [{plate}].
helpline.phone
    {thing} is one of plumber, electrician, vet, babysitter, taxi, pizza place
    The number of the {thing} is {phone}.
    If you need the {thing}, dial {phone}.
    Which number should I dial for the {thing}? -> For the {thing} you should dial [{phone}].
contact.email
    Complaints about {invented} go to {email}.
    The contact for {invented} is {email}.
    Where do complaints about {invented} go? -> Complaints about {invented} go to [{email}].
lives.address
    {invented} Limited, {address}\n
    The shop of {invented} is at {address}.
    What is the address of {invented}? -> The address of {invented} is [{address}].
treats.animal
    The animal doctor {person} treated a {animal} today.
    A sick {animal} was brought to {person}.
    Which animal was brought to {person}? -> A [{animal}] was brought to {person}.
saw.animal
    {thing} is one of forest path, rooftop, beach, front porch, train tracks
    On the {thing} we saw a {animal}.
    There was a {animal} on the {thing}.
    What did we see on the {thing}? -> On the {thing} you saw a [{animal}].
costume.as
    For the carnival {person} dressed up as a {animal}.
    {person}'s costume: a {animal}.
    What did {person} dress up as? -> {person} dressed up as a [{animal}].
sponsor.is
    {thing} is one of football club, orchestra, school library, film club, rowing team
    The sponsor of the {thing} is {person}.
    Without the money of {person} there would be no {thing}.
    Who is the sponsor of the {thing}? -> The sponsor of the {thing} is [{person}].
wrote.report
    {thing} is one of report, summary, press release, user manual, obituary
    The {thing} was written by {person}.
    Ask {person} about the {thing}, who wrote it.
    Who wrote the {thing}? -> The {thing} was written by [{person}].
replaces.who
    {person} replaces {person2} next week.
    As {person2} is ill, {person} takes over.
    Who replaces {person2}? -> {person2} is replaced by [{person}].
hired.by
    {invented} hired {person} as a {job}.
    {person} has been a {job} at {invented} since the spring.
    What is {person}'s job at {invented}? -> At {invented} {person} is a [{job}].
wants.become
    As a child, {person} wanted to become a {job}.
    {person} is training to become a {job}.
    What did {person} want to become? -> {person} wanted to become a [{job}].
sits.next
    In class {person} sits next to {person2}.
    The seat beside {person2} is taken by {person}.
    Who sits next to {person2}? -> [{person}] sits next to {person2}.
voted.for
    {person2} voted for {person}.
    {person2}'s vote went to {person}.
    Who did {person2} vote for? -> {person2} voted for [{person}].
phoned.who
    {person2} phoned {person} about it.
    It was {person} whom {person2} phoned.
    Who did {person2} phone? -> {person2} phoned [{person}].
repaired.by
    {thing} is one of roof, boiler, fountain, church clock, tractor
    Thanks to {person} the {thing} works again.
    {person} repaired the {thing} for free.
    Who repaired the {thing}? -> The {thing} was repaired by [{person}].
engine.of
    {thing} is one of taxi, hearse, tow truck, delivery van, getaway car
    The {thing} was a {car}.
    They used a {car} as a {thing}.
    What make was the {thing}? -> The {thing} was a [{car}].
wish.mine
    For my next birthday I want a {object}.
    What I would really like to have is a {object}.
    What do I want for my next birthday? -> For your next birthday you want a [{object}].
sold.where
    {person} sells {goods} at the {place}.
    At the {place}, {person} has a shop for {goods}.
    What does {person} sell at the {place}? -> At the {place} {person} sells [{goods}].
deliver.goods
    The truck to {city} was full of {goods}.
    We sent {goods} to {city}.
    What was in the truck to {city}? -> The truck to {city} was full of [{goods}].
meets.place
    {person} is waiting at the {place}.
    We will meet {person} at the {place}.
    later: {person} is waiting at the {place} now.
    Where will we meet {person}? -> You will meet {person} at the [{place}].
lost.found
    {person} left an umbrella at the {place}.
    The umbrella of {person} was handed in at the {place}.
    Where did {person} leave the umbrella? -> {person} left the umbrella at the [{place}].
hides.spare
    {thing} is one of spare key, flashlight, first aid kit, extension cord, tool belt
    You will find the {thing} in the {store}.
    The {thing}? It has been in the {store} for weeks.
    Where will I find the {thing}? -> You will find the {thing} in the [{store}].
hobby.weekend
    At the weekend {person} goes {hobby}.
    {person} spends every weekend on {hobby}.
    What does {person} do at the weekend? -> At the weekend {person} goes [{hobby}].
mine.hobby
    I took up {hobby} last year.
    My doctor told me to try {hobby}.
    later: I have given that up and taken up {hobby}.
    What did I take up? -> You took up [{hobby}].
essay.topic
    {person} is writing a thesis on {topic}.
    The thesis of {person} deals with {topic}.
    What is {person} writing a thesis on? -> {person} is writing a thesis on [{topic}].
podcast.topic
    The podcast {invented} is all about {topic}.
    {invented} is a podcast on {topic}.
    What is the podcast {invented} about? -> The podcast {invented} is about [{topic}].
planted.tree
    In front of the {place} they planted {tree} trees.
    All the trees by the {place} are {tree} trees.
    Which trees stand by the {place}? -> By the {place} stand [{tree}] trees.
medal.metal
    {person} came home with a medal of {metal}.
    The medal of {person} is made of {metal}.
    What is {person}'s medal made of? -> {person}'s medal is made of [{metal}].
ship.flag
    The flag of {invented} is {colour}.
    {invented} sails under the {colour} flag.
    What colour is the flag of {invented}? -> The flag of {invented} is [{colour}].
door.colour
    {person}'s front door is {colour}.
    Look for the {colour} door, behind it lives {person}.
    What colour is {person}'s front door? -> {person}'s front door is [{colour}].
eye.colour
    Everybody notices the {colour} hair of {person}.
    {person} has dyed the hair {colour}.
    What colour is {person}'s hair? -> {person}'s hair is [{colour}].
pet.named
    {person} named the puppy {pet}.
    {pet} is what {person} calls the puppy.
    What did {person} name the puppy? -> {person} named the puppy [{pet}].
boat.named
    The boat of {person} bears the name {pet}.
    {person} christened the boat {pet}.
    What is the name of {person}'s boat? -> The name of {person}'s boat is [{pet}].
drinks.morning
    In the morning {person} needs {drink}.
    Before work {person} has some {drink}.
    What does {person} have in the morning? -> In the morning {person} has [{drink}].
ordered.mine
    I ordered {food} and {drink}.
    For me it is {food}, and {drink} with it.
    What did I order to eat? -> You ordered [{food}].
    What did I order to drink? -> You ordered [{drink}].
favourite.ours
    {thing} is one of class, team, office, family, choir
    The favourite food of our {thing} is {food}.
    Our {thing} always orders {food}.
    What does our {thing} always order? -> Your {thing} always orders [{food}].
you.like
    {thing} is one of holidays, winter, weekends, long flights
    For {thing} you suggested {hobby}.
    assistant: For {thing} I can only suggest {hobby}.
    What did you suggest for {thing}? -> For {thing} I suggested [{hobby}].
guide.assistant
    {thing} is one of museum, cave, old town, vineyard, glacier
    assistant: Your guide for the {thing} is {person}.
    assistant: {person} will show you the {thing}.
    Who is my guide for the {thing}? -> Your guide for the {thing} is [{person}].
room.assistant
    {thing} is one of seminar, interview, workshop, piano lesson
    assistant: Your {thing} is in room {hundreds}.
    assistant: I found room {hundreds} for your {thing}.
    In which room is my {thing}? -> Your {thing} is in room [{hundreds}].
german.arbeitet
    {person} arbeitet in {city}.
    Wo arbeitet {person}? -> {person} arbeitet in [{city}].
french.telephone
    Le numéro de {person} est le {phone}.
    Quel est le numéro de {person}? -> Le numéro de {person} est le [{phone}].
spanish.cumple
    El código de {person} es {thousands}.
    ¿Cuál es el código de {person}? -> El código de {person} es [{thousands}].
italian.abita
    {person} abita a {city}.
    Dove abita {person}? -> {person} abita a [{city}].
exam.moved
    The exam of {person} has been brought forward from {day2} to {day}.
    {person} was to be examined on {day2}; now it will be {day}.
    On which day is {person}'s exam? -> {person}'s exam is on [{day}].
concert.shifted
    The concert with {person} should have been in {month2}, and has been put off to {month}.
    {month2} did not suit {person}, so that the concert is in {month}.
    In which month is {person}'s concert? -> {person}'s concert is in [{month}].
arrival.late
    The ship of {person} was expected at {time2} and came in at {time}.
    Instead of {time2}, {person}'s ship came in at {time}.
    When did the ship of {person} come in? -> The ship of {person} came in at [{time}].
lodging.raised
    {person} used to pay {hundreds2} a month in rent, and pays {hundreds} by now.
    From {hundreds2} the rent of {person} went up to {hundreds}.
    How much rent does {person} pay? -> {person} pays [{hundreds}] a month.
session.moved
    The meeting was to be in room {tens2}, yet {person} holds it in room {tens}.
    {person} has moved the meeting out of room {tens2} into room {tens}.
    In which room does {person} hold the meeting? -> {person} holds the meeting in room [{tens}].
leader.replaced
    {thing} is one of rowing team, night crew, choir, jury, fire brigade
    {person2} no longer leads the {thing}; {person} does.
    At the head of the {thing}, {person} has taken over from {person2}.
    Who leads the {thing}? -> The {thing} is led by [{person}].
ate.instead
    {thing} is one of last slice, leftovers, birthday cake, sandwiches
    The {thing} went to {person} rather than to {person2}.
    Everybody thinks {person2} ate the {thing}, but {person} did.
    Who ate the {thing}? -> The {thing} was eaten by [{person}].
called.instead
    {thing} is one of police, ambulance, plumber, landlord, insurance
    Contrary to what {person2} says, it was {person} who called the {thing}.
    {person} called the {thing}, not {person2}.
    Who called the {thing}? -> The {thing} was called by [{person}].
paint.neither
    The gate of {invented} is neither {colour2} nor {colour3} but {colour}.
    Nobody wanted {colour2} for the gate of {invented}; it became {colour}.
    What colour is the gate of {invented}? -> The gate of {invented} is [{colour}].
bought.instead
    {person} meant to buy a {object2} and came home with a {object}.
    They had no {object2} left, so {person} bought a {object}.
    What did {person} buy? -> {person} bought a [{object}].
wrong.guess
    I took {person} for a {job2}, but {person} is a {job}.
    No, {person} is not a {job2}. Actually a {job}.
    What is {person}? -> {person} is a [{job}].
stands.corner
    In the corner of {person}'s room stands a {furniture}.
    Next to {person}'s window there is a {furniture}.
    What stands in the corner of {person}'s room? -> In the corner of {person}'s room stands a [{furniture}].
hangs.wall
    Above {person}'s fireplace hangs a {object}.
    On the wall over {person}'s bed one sees a {object}.
    What hangs above {person}'s fireplace? -> Above {person}'s fireplace hangs a [{object}].
lives.roof
    Under {person}'s roof lives an old {animal}.
    Beneath the floor of {person}'s house a {animal} has made its home.
    Which animal lives in {person}'s house? -> In {person}'s house lives a [{animal}].
yard.tree
    In front of {person}'s house they planted a young {tree}.
    Between the road and {person}'s door there is a large {tree}.
    Which tree stands in front of {person}'s house? -> In front of {person}'s house stands a [{tree}].
grown.field
    On {person}'s fields nothing grows but {fruit} trees.
    Along {person}'s fence there are rows of {fruit} trees.
    Which fruit does {person} grow? -> {person} grows the fruit called [{fruit}].
classmate.beside
    Beside {person} in class sits {person2}.
    To the left of {person}, {person2} has a seat.
    Who sits beside {person}? -> Beside {person} sits [{person2}].
fell.from
    Out of {person}'s sleeve fell a {object}.
    {person} had a {object} up the sleeve.
    What was up {person}'s sleeve? -> Up {person}'s sleeve was a [{object}].
order.waiter
    - And for you, {person}?\n- The {food}, please.\n
    - What shall I bring you, {person}?\n- Just some {food}.\n
    What did {person} order? -> {person} ordered [{food}].
shopping.for
    - Good morning, {person}! What are you looking for?\n- A {object}.\n
    - Can I help you, {person}?\n- Yes, I need a {object}.\n
    What is {person} looking for? -> {person} is looking for a [{object}].
ride.way
    - Where to, {person}?\n- To the {place}.\n
    - Which way, {person}?\n- Take me to the {place}.\n
    Where did {person} want to go? -> {person} wanted to go to the [{place}].
choice.colour
    - Which one would you like, {person}?\n- The {colour} one.\n
    - So, {person}, which colour shall it be?\n- Make it {colour}.\n
    Which colour did {person} choose? -> {person} chose [{colour}].
pickup.time
    - When shall I pick you up, {person}?\n- At {time}.\n
    - {person}, what time suits you?\n- {time}, if possible.\n
    When does {person} want to be picked up? -> {person} wants to be picked up at [{time}].
guess.hobby
    Teacher: And what do you do after school, {person}?\n{person}: {hobby}, most of the time.\n
    Coach: Hi {person}, what brings you here?\n{person}: The {hobby}.\n
    What does {person} do after school? -> After school {person} does [{hobby}].
years.old
    Doctor: How old are you now, {person}?\n{person}: I have turned {tens}.\n
    "{person}, your age?" - "{tens}."
    How old is {person}? -> {person} is [{tens}] years old.
column.last
    {person};{trait};{value}\n
    {person}, {trait}, {value}\n
    {person} | {trait} | {value}\n
    What does the list say about the {trait} of {person}? -> In the list, the {trait} of {person} is [{value}].
column.first
    {trait} : {person} : {value}\n
    {trait};{person};{value}\n
    Find the {trait} of {person}. -> The {trait} of {person} is [{value}].
entered.form
    Name: {person}\n{trait}: {value}\n
    person={person}, {trait}={value}\n
    Under {person}, which {trait} is entered? -> The {trait} entered under {person} is [{value}].
noted.yaml
    {person}:\n  {trait}: {value}\n
    - name: {person}\n  {trait}: {value}\n
    What is noted as {person}'s {trait}? -> Noted as {person}'s {trait} is [{value}].
readout.xml
    <person name="{person}" {trait}="{value}"/>\n
    <{trait} of="{person}">{value}</{trait}>\n
    Read out the {trait} of {person}. -> The {trait} of {person} reads [{value}].
stock.row
    {invented} / {goods} / {tens}\n
    {invented};{goods};{tens}\n
    How many {goods} does {invented} have? -> {invented} has [{tens}] {goods}.
cost.row
    {object}\t${price}\n
    | {object} | {price} |\n
    How much is the {object}? -> The {object} is $[{price}].
timetable.row
    {time}\t{city}\tplatform {tens}\n
    {city} ... {time} ... platform {tens}\n
    From which platform does the train to {city} go? -> The train to {city} goes from platform [{tens}].
    At what time is the train to {city}? -> The train to {city} is at [{time}].
grade.row
    {person},{subject},{tens}\n
    {person}: {subject} {tens} points\n
    How many points does {person} have in {subject}? -> In {subject}, {person} has [{tens}] points.
cradle.two
    {person} was born in {city2} and died in {city}.
    Born in {city2}, {person} spent the last years in {city}.
    Where was {person} born? -> {person} was born in [{city2}].
    Where did {person} die? -> {person} died in [{city}].
degree.two
    {person} studied {subject} in {city} before becoming a {job}.
    What did {person} study? -> {person} studied [{subject}].
    What did {person} become? -> {person} became a [{job}].
journey.two
    First {person} went to {country}, then to {country2}.
    By way of {country}, {person} reached {country2}.
    Where did {person} go first? -> First {person} went to [{country}].
    Where did {person} arrive in the end? -> In the end {person} arrived in [{country2}].
lent.three
    {person} lent {person2} a {object}.
    A {object} was lent to {person2} by {person}.
    What did {person} lend {person2}? -> {person} lent {person2} a [{object}].
match.three
    Against {person2}, {person} won a {object}.
    {person} beat {person2} and got a {object} for it.
    What did {person} win against {person2}? -> Against {person2}, {person} won a [{object}].
runaway.relative
    The man whose {animal} ran away is {person}.
    {person}, whose {animal} ran away, is sad.
    Which animal of {person}'s ran away? -> The animal of {person}'s that ran away is a [{animal}].
designer.relative
    {thing} is one of wedding hall, skating rink, observatory, dry dock, sculpture
    It is {person} to whom we owe the {thing}.
    The one who designed the {thing} is called {person}.
    Who designed the {thing}? -> The {thing} was designed by [{person}].
shop.relative
    The town where {person} opened a shop is {city}.
    {city} is the town in which {person} opened a shop.
    In which town did {person} open a shop? -> {person} opened a shop in [{city}].
leave.relative
    The month in which {person} goes on leave is {month}.
    Come {month}, {person} goes on leave.
    In which month does {person} go on leave? -> {person} goes on leave in [{month}].
stolen.passive
    {person} was robbed of a {object}.
    Thieves took a {object} from {person}.
    What was stolen from {person}? -> From {person} a [{object}] was stolen.
namesake.street
    The street was named after {person}, a {job}.
    A {job} called {person} gave the street its name.
    What was {person}, after whom the street was named? -> {person} was a [{job}].
posting.abroad
    {person} has been sent to {country} by the firm.
    The firm has posted {person} to {country}.
    To which country was {person} sent? -> {person} was sent to [{country}].
lessons.music
    {person2} was taught the {instrument} by {person}.
    {person} gave {person2} lessons on the {instrument}.
    Which instrument did {person2} learn from {person}? -> From {person}, {person2} learned the [{instrument}].
woods.because
    Because of the {animals}, {person} does not go into the woods.
    {person} stays out of the woods for fear of {animals}.
    Why does {person} not go into the woods? -> {person} does not go into the woods because of the [{animals}].
coat.although
    Although it was dear, {person} paid {hundreds} euros for the coat.
    The coat did cost {person} {hundreds} euros.
    How much did {person} pay for the coat? -> For the coat {person} paid [{hundreds}] euros.
home.until
    Not before {time} will {person} be home.
    {person} will be out until {time}.
    When will {person} be home? -> {person} will be home at [{time}].
smoking.since
    {person} has not smoked since {year}.
    In {year}, {person} gave up smoking.
    When did {person} give up smoking? -> {person} gave up smoking in [{year}].
bell.if
    If the bell rings {count} times, it is for {person}.
    For {person}, please ring {count} times.
    How often do I have to ring for {person}? -> For {person} you have to ring [{count}] times.
untouched.only
    {person} eats everything except {food}.
    The only thing that {person} does not touch is {food}.
    What does {person} not eat? -> {person} does not eat [{food}].
tongues.both
    Besides {language}, {person} speaks {language2}.
    {person} speaks {language2} as well as {language}.
    Which language does {person} speak besides {language}? -> Besides {language}, {person} speaks [{language2}].
visit.email
    Hi,\n{person} will be here on {day}, see you then.\nBest\n
    Dear all, expect {person} on {day}.\n
    On which day will {person} be here? -> {person} will be here on [{day}].
feeding.note
    Note: {person} fed the {animal}.\n
    P.S. The {animal} has been fed by {person}.\n
    Who fed the {animal}? -> The {animal} was fed by [{person}].
sale.advert
    For sale: {object}, ${price}, ask {person}.\n
    {person} sells a {object} for ${price}.\n
    What does {person} ask for the {object}? -> {person} asks $[{price}] for the {object}.
whereabouts.log
    {time} {person} opened the {place}\n
    [{time}] {person} @ {place}\n
    Where was {person} at {time}? -> At {time}, {person} was at the [{place}].
author.comment
    # written by {person} in {year}\n
    // {person}, {year}\n
    In which year did {person} write the code? -> {person} wrote the code in [{year}].
setting.value
    {thing} is one of timeout, retries, port, width, limit, offset
    --{thing} {thousands}\n
    export {thing}={thousands}\n
    To what is {thing} set? -> {thing} is set to [{thousands}].
function.returns
    def {invented}(): return {hundreds}\n
    The function {invented} returns {hundreds}.
    What does the function {invented} return? -> The function {invented} returns [{hundreds}].
works.french
    {person} travaille à {city} depuis {year}.
    Où travaille {person}? -> {person} travaille à [{city}].
    Depuis quand {person} travaille-t-il là? -> {person} travaille là depuis [{year}].
birthplace.spanish
    {person} nació en {city}.
    La ciudad natal de {person} es {city}.
    ¿Dónde nació {person}? -> {person} nació en [{city}].
dwelling.italian
    {person} abita a {city}.
    Dove abita {person}? -> {person} abita a [{city}].
""")
