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
""")
