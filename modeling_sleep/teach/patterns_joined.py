"""Patterns whose answer joins two facts: for measuring alone, nothing is trained on them. See `patterns.py`."""

from .patterns import parse


JOINED = parse(r"""
relative.lives
    {thing} is one of brother, sister, cousin, neighbour, boss
    {person2}'s {thing} is {person}. {person} lives in {city}.
    {person} lives in {city}. {person2}'s {thing} is {person}.
    Where does {person2}'s {thing} live? -> {person2}'s {thing} lives in [{city}].
relative.works
    {thing} is one of brother, sister, cousin, neighbour, wife
    {person2}'s {thing} is {person}. {person} works as a {job}.
    {person} works as a {job}. {person2}'s {thing} is {person}.
    What does {person2}'s {thing} do for a living? -> {person2}'s {thing} works as a [{job}].
relative.plays
    {thing} is one of brother, sister, cousin, teacher, husband
    {person2}'s {thing} is {person}. {person} plays the {instrument}.
    {person} plays the {instrument}. {person2}'s {thing} is {person}.
    Which instrument does {person2}'s {thing} play? -> {person2}'s {thing} plays the [{instrument}].
winner.speaks
    {thing} is one of race, tournament, contest, quiz
    {person} won the {thing}. {person} speaks {language}.
    {person} speaks {language}. {person} won the {thing}.
    Which language does the winner of the {thing} speak? -> The winner of the {thing} speaks [{language}].
owner.drives
    {thing} is one of farm, cottage, sailing boat, bookshop
    The {thing} belongs to {person}. {person} drives a {car}.
    {person} drives a {car}. The {thing} belongs to {person}.
    Which car does the owner of the {thing} drive? -> The owner of the {thing} drives a [{car}].
ruler.born
    {thing} is one of king, queen, mayor, president
    The {thing} of {invented} is {person}. {person} was born in {year}.
    {person} was born in {year}. The {thing} of {invented} is {person}.
    When was the {thing} of {invented} born? -> The {thing} of {invented} was born in [{year}].
""")
