"""Seeded generator of English arithmetic word problems with worked answers.

Every problem has one to ten steps, each written as a sentence that ends in an equation, and a last line `#### N`
(the form of GSM8K).  A problem's `key` is its kind and the numbers drawn for it, without names and wording; `is_held_out`
splits on that key, so a held-out problem shares its kind and numbers with no training problem.

    python tools/tiny/problems.py --held-out 200 --out checkpoints/tiny/eval.jsonl     # the evaluation set
    python tools/tiny/problems.py --show 5                                        # look at a few
"""

import argparse
import collections
import hashlib
import json
import random
from dataclasses import dataclass

HELD_OUT_ONE_IN = 25  # one key in this many belongs to the evaluation side

GIRLS = """Anna Bella Clara Diana Emma Fiona Grace Hannah Iris Julia Kate Laura Maria Nora Olivia Paula Rosa Sara Tina
Vera Wendy Zoe Alice Betty Carla Daisy Elena Ella Jane Lily Lucy Mia Molly Nina Ruby Sophie""".split()
BOYS = """Adam Ben Carl David Ethan Felix George Henry Ivan Jack Kevin Leo Mark Noah Oscar Peter Robert Sam Tom Victor
Walter Alex Brian Chris Daniel Eric Frank Greg James John Luke Martin Nick Paul Ryan Simon""".split()
SMALL_THINGS = """apples pencils marbles stickers cookies stamps shells beads buttons coins cards oranges balloons candies
crayons eggs peaches plums muffins erasers""".split()
CONTAINERS = "boxes bags baskets jars packs crates trays cartons".split()
SHOP_THINGS = """notebook book pen shirt hat toy cake mug lamp chair plant ball kite puzzle scarf sandwich ticket
poster""".split()
FLOWERS = "roses tulips daisies lilies sunflowers".split()
CROPS = ["tomato", "pepper", "bean", "strawberry", "pumpkin", "cucumber"]
FRUIT_TREES = ["apple", "pear", "cherry", "plum", "lemon", "orange"]
PLACES = ["the market", "the fair", "the shop", "the park", "the beach", "the school", "the library"]
JOBS = ["a gardener", "a driver", "a painter", "a cook", "a teacher", "a cleaner", "a waiter", "a mechanic"]
MACHINES = [("printer", "posters"), ("machine", "bottles"), ("robot", "parts"), ("oven", "loaves"), ("worker", "toys")]


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str
    final: int
    key: str


class Person:
    """A name with its pronouns."""

    def __init__(self, name, girl):
        self.name = name
        self.he = "she" if girl else "he"
        self.He = "She" if girl else "He"
        self.his = "her" if girl else "his"
        self.him = "her" if girl else "him"

    def __str__(self):
        return self.name


class Teller:
    """Draws everything a problem is made of, and remembers the numbers."""

    def __init__(self, rng):
        self.rng = rng
        self.numbers = []

    def num(self, low, high, step=1):
        value = self.rng.randrange(low, high + 1, step)
        self.numbers.append(value)
        return value

    def pick(self, *choices):
        return self.rng.choice(choices)

    def any(self, pool):
        return self.rng.choice(pool)

    def some(self, pool, count):
        return self.rng.sample(pool, count)

    def person(self):
        return self.people(1)[0]

    def people(self, count):
        everyone = [(name, True) for name in GIRLS] + [(name, False) for name in BOYS]
        return [Person(*entry) for entry in self.rng.sample(everyone, count)]


# One function for each kind of problem: it returns the question, the worked steps and the answer.


def boxes_of_things(t):
    p, thing, box = t.person(), t.any(SMALL_THINGS), t.any(CONTAINERS)
    count, each = t.num(2, 12), t.num(3, 25)
    total = count * each
    question = t.pick(
        f"{p} buys {count} {box} of {thing}. There are {each} {thing} in each of the {box}.",
        f"{p} has {count} {box}. Each one holds {each} {thing}.",
        f"There are {count} {box} on a table, and {p} puts {each} {thing} in each.",
    )
    steps = [t.pick(f"{p} has {count} {box} of {each} {thing}, so {p.he} has {count} * {each} = {total} {thing}.",
                    f"{count} {box} with {each} {thing} each make {count} * {each} = {total} {thing}.")]
    if t.pick(True, False):
        more = t.num(5, 90)
        question += t.pick(f" {p.He} already had {more} {thing} at home.", f" Then {p.he} finds {more} more {thing}.")
        steps.append(f"Together with the other {more}, that is {total} + {more} = {total + more} {thing}.")
        total += more
    if t.pick(True, False):
        gone = t.num(2, total - 1)
        friend = t.people(1)[0]
        question += t.pick(f" {p.He} gives {gone} {thing} to {friend}.", f" Then {p.he} loses {gone} of the {thing}.")
        steps.append(f"After that {p.he} has {total} - {gone} = {total - gone} {thing} left.")
        total -= gone
    question += t.pick(f" How many {thing} does {p} have now?", f" How many {thing} does {p.he} have in the end?")
    return question, steps, total


def changing_count(t):
    p, thing = t.person(), t.any(SMALL_THINGS)
    total = t.num(10, 120)
    question = t.pick(f"{p} starts the day with {total} {thing}.", f"{p} has {total} {thing} in a bag.")
    steps = [t.pick(f"{p} starts with {total} {thing}.", f"At first there are {total} {thing}.")]
    for _ in range(t.num(2, 8)):
        if total > 12 and t.pick(True, False):
            gone = t.num(2, total - 5)
            friend = t.person()
            question += t.pick(f" {p.He} gives {gone} to {friend}.", f" {p.He} loses {gone} of them.",
                               f" {p.He} sells {gone} of them.", f" {friend} takes {gone} of them.")
            steps.append(t.pick(f"Taking away {gone} leaves {total} - {gone} = {total - gone} {thing}.",
                                f"Then {p.he} has {total} - {gone} = {total - gone} {thing} left."))
            total -= gone
        else:
            more = t.num(3, 99)
            friend = t.person()
            question += t.pick(f" {p.He} finds {more} more.", f" {friend} gives {p.him} {more} more.",
                               f" {p.He} buys {more} more at {t.any(PLACES)}.")
            steps.append(t.pick(f"Adding {more} makes {total} + {more} = {total + more} {thing}.",
                                f"Then {p.he} has {total} + {more} = {total + more} {thing}."))
            total += more
    question += t.pick(f" How many {thing} does {p} have at the end?", f" How many {thing} are there now?")
    return question, steps, total


def shopping(t):
    p = t.person()
    things = t.some(SHOP_THINGS, t.num(1, 5))
    question, steps, sums = t.pick(f"{p} goes to the shop.", f"{p} is shopping at the market.", f"{p} needs a few things."), [], []
    for thing in things:
        count, price = t.num(2, 9), t.num(2, 20)
        question += t.pick(f" {p.He} buys {count} {thing}s for ${price} each.", f" {p.He} takes {count} {thing}s that cost ${price} each.")
        steps.append(t.pick(f"The {count} {thing}s cost {count} * {price} = ${count * price}.",
                            f"{p} pays {count} * {price} = ${count * price} for the {thing}s."))
        sums.append(count * price)
    total = sums[0]
    for cost in sums[1:]:
        steps.append(f"Together that is {total} + {cost} = ${total + cost}.")
        total += cost
    if t.pick(True, False):
        return question + t.pick(" How much does it cost in total?", f" How much does {p} pay in all?"), steps, total
    note = next(value for value in (20, 50, 100, 200, 500, 1000) if value > total)
    t.numbers.append(note)
    question += t.pick(f" {p.He} pays with ${note}. How much change does {p.he} get?", f" {p.He} had ${note}. How much money is left?")
    return question, steps + [f"From ${note} there is {note} - {total} = ${note - total} left."], note - total


def earning(t):
    p, job = t.person(), t.any(JOBS)
    hours, days, rate = t.num(2, 9), t.num(2, 7), t.num(5, 20)
    question = t.pick(f"{p} works as {job} for {hours} hours a day and earns ${rate} an hour. {p.He} works {days} days a week.",
                      f"As {job}, {p} gets ${rate} for each hour. {p.He} works {hours} hours on each of {days} days.")
    daily, weekly = hours * rate, hours * rate * days
    steps = [f"In one day {p} earns {hours} * {rate} = ${daily}.", f"In {days} days {p.he} earns {days} * {daily} = ${weekly}."]
    kind = t.num(0, 2)
    if kind == 0:
        return question + t.pick(f" How much does {p} earn in a week?", f" How many dollars does {p.he} make in all?"), steps, weekly
    if kind == 1:
        bonus = t.num(10, 100, 5)
        question += f" At the end {p.he} gets a bonus of ${bonus}. How much money does {p} get in total?"
        return question, steps + [f"With the bonus that is {weekly} + {bonus} = ${weekly + bonus}."], weekly + bonus
    spent = t.num(5, weekly - 1, 5) if weekly > 10 else t.num(1, weekly - 1)
    question += f" Then {p.he} spends ${spent} on food. How much is left?"
    return question, steps + [f"After spending ${spent}, {p.he} has {weekly} - {spent} = ${weekly - spent} left."], weekly - spent


def sharing(t):
    p, thing = t.person(), t.any(SMALL_THINGS)
    groups, each = t.num(2, 12), t.num(2, 20)
    total = groups * each
    people = t.pick("friends", "children", "classmates", "neighbors", "cousins")
    question = t.pick(f"{p} has {total} {thing} and shares them equally among {groups} {people}.",
                      f"{p} gives {total} {thing} to {groups} {people} so that everybody gets the same.")
    steps = [t.pick(f"Each of the {groups} {people} gets {total} / {groups} = {each} {thing}.",
                    f"Sharing {total} {thing} among {groups} {people} gives {total} / {groups} = {each} each.")]
    if t.pick(True, False) or each < 3:
        return question + t.pick(f" How many {thing} does each one get?", f" How many does each of the {people} receive?"), steps, each
    eaten = t.num(1, each - 1)
    question += f" One of the {people} then loses {eaten} of the {thing}. How many {thing} does this one still have?"
    return question, steps + [f"After losing {eaten}, there are {each} - {eaten} = {each - eaten} left."], each - eaten


def left_over_shared(t):
    p, thing, box = t.person(), t.any(SMALL_THINGS), t.any(CONTAINERS)
    groups, each, kept = t.num(2, 10), t.num(3, 15), t.num(3, 40)
    total = groups * each + kept
    question = t.pick(f"{p} has {total} {thing}. {p.He} keeps {kept} of them and puts the rest in {groups} {box}, the same number in each.",
                      f"Out of {total} {thing}, {p} eats or loses {kept}. The others go equally into {groups} {box}.")
    steps = [f"The rest is {total} - {kept} = {total - kept} {thing}.",
             f"Each of the {groups} {box} gets {total - kept} / {groups} = {each} {thing}."]
    return question + f" How many {thing} are in each of the {box}?", steps, each


def times_as_many(t):
    (a, b), thing = t.people(2), t.any(SMALL_THINGS)
    base, factor = t.num(3, 40), t.num(2, 6)
    words = {2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}[factor]
    other = base * factor
    question = t.pick(f"{a} has {base} {thing}. {b} has {words} as many {thing} as {a}.",
                      f"{a} collected {base} {thing} and {b} collected {words} as many.")
    steps = [f"{b} has {factor} * {base} = {other} {thing}."]
    kind = t.num(0, 2)
    if kind == 0:
        return question + f" How many {thing} do they have together?", steps + [f"Together they have {base} + {other} = {base + other} {thing}."], base + other
    if kind == 1:
        return question + f" How many more {thing} does {b} have than {a}?", steps + [f"{b} has {other} - {base} = {other - base} more {thing}."], other - base
    given = t.num(1, base * factor - 1)
    question += f" Then {b} gives away {given} {thing}. How many {thing} does {b} have left?"
    return question, steps + [f"After giving away {given}, {b} has {other} - {given} = {other - given} {thing}."], other - given


def more_and_fewer(t):
    (a, b, c), thing = t.people(3), t.any(SMALL_THINGS)
    first = t.num(10, 80)
    more, fewer = t.num(2, 40), t.num(2, 9)
    second, third = first + more, first + more - fewer
    question = t.pick(f"{a} has {first} {thing}. {b} has {more} more than {a}, and {c} has {fewer} fewer than {b}.",
                      f"{a} found {first} {thing}, {b} found {more} more than {a}, and {c} found {fewer} less than {b}.")
    steps = [f"{b} has {first} + {more} = {second} {thing}.", f"{c} has {second} - {fewer} = {third} {thing}."]
    if t.pick(True, False):
        return question + f" How many {thing} does {c} have?", steps, third
    both = first + second
    steps += [f"{a} and {b} have {first} + {second} = {both} {thing}.", f"All three have {both} + {third} = {both + third} {thing}."]
    return question + f" How many {thing} do the three have together?", steps, both + third


def fraction_of(t):
    p, thing = t.person(), t.any(SMALL_THINGS)
    part, share = t.num(2, 5), t.num(3, 40)
    total = part * share
    word = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}[part]
    verb, past = t.any([("sell", "sold"), ("eat", "eaten"), ("give away", "given away"), ("lose", "lost")])
    question = t.pick(f"{p} has {total} {thing}. {p.He} wants to {verb} {word} of them.", f"There are {total} {thing}, and {p} is going to {verb} {word} of them.")
    steps = [f"{word.capitalize()} of {total} is {total} / {part} = {share}."]
    if t.pick(True, False) and part > 2:
        steps.append(f"There will be {total} - {share} = {total - share} {thing} left.")
        return question + f" How many {thing} will be left?", steps, total - share
    return question + f" How many {thing} will be {past}?", steps, share


def distance(t):
    p = t.person()
    vehicle, verb = t.any([("a car", "drives"), ("a bike", "rides"), ("a bus", "travels"), ("a train", "travels")])
    speed, hours = t.num(10, 90, 5), t.num(2, 8)
    first = speed * hours
    question = t.pick(f"{p} {verb} with {vehicle} at {speed} miles per hour for {hours} hours.", f"With {vehicle}, {p} {verb} for {hours} hours at {speed} miles an hour.")
    steps = [f"In {hours} hours {p} covers {hours} * {speed} = {first} miles."]
    kind = t.num(0, 2)
    if kind == 0:
        return question + t.pick(" How many miles is that?", f" How far does {p} go?"), steps, first
    if kind == 1:
        speed2, hours2 = t.num(10, 60, 5), t.num(2, 5)
        second = speed2 * hours2
        question += f" Then {p.he} goes on at {speed2} miles per hour for {hours2} hours. How many miles is the whole trip?"
        steps += [f"In the next {hours2} hours {p.he} covers {hours2} * {speed2} = {second} miles.", f"The whole trip is {first} + {second} = {first + second} miles."]
        return question, steps, first + second
    rest = t.num(5, 150, 5)
    question += f" The whole way is {first + rest} miles. How many miles are left?"
    return question, steps + [f"There are {first + rest} - {first} = {rest} miles left."], rest


def reading(t):
    p = t.person()
    pages, days = t.num(5, 40), t.num(2, 9)
    read = pages * days
    question = t.pick(f"{p} reads {pages} pages of a book every day for {days} days.", f"For {days} days, {p} reads {pages} pages each day.")
    steps = [f"{p} reads {days} * {pages} = {read} pages."]
    kind = t.num(0, 2)
    if kind == 0:
        rest = t.num(10, 200)
        return question + f" The book has {read + rest} pages. How many pages are left?", steps + [f"There are {read + rest} - {read} = {rest} pages left."], rest
    if kind == 1:
        extra = t.num(5, 60)
        return question + f" On the next day {p.he} reads {extra} pages. How many pages has {p.he} read?", steps + [f"With the next day that is {read} + {extra} = {read + extra} pages."], read + extra
    rate, more = t.num(4, 30), t.num(2, 9)
    rest = rate * more
    question += f" The book has {read + rest} pages, and from now on {p.he} reads {rate} pages a day. How many more days does {p.he} need?"
    steps += [f"There are {read + rest} - {read} = {rest} pages left.", f"At {rate} pages a day, {p.he} needs {rest} / {rate} = {more} days."]
    return question, steps, more


def saving(t):
    p, thing = t.person(), t.pick("bike", "guitar", "phone", "camera", "game", "tent")
    weekly, weeks, has = t.num(3, 25), t.num(2, 12), t.num(5, 80)
    need = weekly * weeks
    question = t.pick(f"{p} wants to buy a {thing} for ${need + has}. {p.He} has ${has} and saves ${weekly} every week.",
                      f"A {thing} costs ${need + has}. {p} already has ${has} and can save ${weekly} a week.")
    steps = [f"{p} still needs {need + has} - {has} = ${need}.", f"Saving ${weekly} a week takes {need} / {weekly} = {weeks} weeks."]
    return question + t.pick(f" How many weeks does {p} need?", f" After how many weeks can {p.he} buy it?"), steps, weeks


def saving_total(t):
    p = t.person()
    weekly, weeks, gift = t.num(3, 30), t.num(3, 12), t.num(10, 90)
    total = weekly * weeks
    question = t.pick(f"{p} saves ${weekly} every week for {weeks} weeks.", f"Each week {p} puts ${weekly} into a jar, and does so for {weeks} weeks.")
    question += f" For {p.his} birthday {p.he} gets ${gift} more."
    steps = [f"{p} saves {weeks} * {weekly} = ${total}.", f"With the gift {p.he} has {total} + {gift} = ${total + gift}."]
    total += gift
    if t.pick(True, False):
        spent = t.num(5, total - 1)
        question += f" Then {p.he} buys a present for ${spent}."
        steps.append(f"After the present {p.he} has {total} - {spent} = ${total - spent}.")
        total -= spent
    return question + f" How much money does {p} have?", steps, total


def rectangle(t):
    p, place = t.person(), t.pick("garden", "yard", "room", "field", "pool", "park")
    length, width = t.num(5, 25), t.num(3, 12)
    question = t.pick(f"{p} has a {place} that is {length} meters long and {width} meters wide.", f"The {place} of {p} is {width} meters wide and {length} meters long.")
    area = length * width
    if t.pick(True, False):
        steps = [f"The area is {length} * {width} = {area} square meters."]
        if t.pick(True, False):
            return question + t.pick(" What is its area in square meters?", " How many square meters is it?"), steps, area
        price = t.num(2, 5)
        steps.append(f"At ${price} for each square meter, it costs {price} * {area} = ${price * area}.")
        return question + f" A new floor costs ${price} for each square meter. How much does the floor cost?", steps, price * area
    half = length + width
    steps = [f"One long and one short side make {length} + {width} = {half} meters.", f"All around it is 2 * {half} = {2 * half} meters."]
    return question + t.pick(" How long is a fence all around it?", " What is its perimeter in meters?"), steps, 2 * half


def planting(t):
    p, plant = t.person(), t.any(FLOWERS)
    rows, each = t.num(3, 12), t.num(4, 20)
    total = rows * each
    question = t.pick(f"{p} plants {rows} rows of {plant} with {each} in each row.", f"In the garden of {p} there are {rows} rows of {plant}. Each row has {each}.")
    steps = [f"There are {rows} * {each} = {total} {plant}."]
    dead = t.num(2, total // 2)
    question += t.pick(f" {dead} of them do not grow.", f" A storm breaks {dead} of them.")
    steps.append(f"After that {total} - {dead} = {total - dead} {plant} are left.")
    total -= dead
    if t.pick(True, False):
        more = t.num(3, 50)
        question += f" Later {p.he} plants {more} more."
        steps.append(f"With the new ones there are {total} + {more} = {total + more} {plant}.")
        total += more
    return question + f" How many {plant} are there now?", steps, total


def harvest(t):
    p, crop, box = t.person(), t.any(CROPS), t.any(CONTAINERS)
    plants, boxes, per_box = t.num(2, 9), t.num(2, 9), t.num(2, 9)
    each = boxes * per_box
    total = plants * each
    question = t.pick(f"{p} has {plants} {crop} plants and each gives {each} pounds.", f"Each of the {plants} {crop} plants of {p} gives {each} pounds.")
    steps = [f"The plants give {plants} * {each} = {total} pounds."]
    if t.pick(True, False):
        price = t.num(2, 6)
        return question + f" {p.He} sells a pound for ${price}. How much money does {p.he} get?", steps + [f"Selling them brings {total} * {price} = ${total * price}."], total * price
    question += f" {p.He} fills {box} with {per_box} pounds each. How many {box} does {p.he} need?"
    return question, steps + [f"With {per_box} pounds in each, {p.he} needs {total} / {per_box} = {total // per_box} {box}."], total // per_box


def orchard(t):
    p, fruit = t.person(), t.any(FRUIT_TREES)
    trees, each, kept = t.num(3, 12), t.num(10, 40), t.num(5, 25)
    total = trees * each
    question = f"{p} has {trees} {fruit} trees. " + t.pick(f"Every tree gives {each} baskets of fruit a year.", f"From each tree {p.he} picks {each} baskets.")
    steps = [f"All the trees give {trees} * {each} = {total} baskets.", f"Without the {kept} for the family there are {total} - {kept} = {total - kept} baskets to sell."]
    return question + f" The family keeps {kept} baskets and sells the others. How many baskets do they sell?", steps, total - kept


def recipe(t):
    p, food = t.person(), t.pick("cakes", "pies", "pizzas", "breads", "pancakes")
    cups, batches, extra = t.num(2, 8), t.num(2, 12), t.num(1, 40)
    used = cups * batches
    question = t.pick(f"One batch of {food} takes {cups} cups of flour. {p} makes {batches} batches.", f"{p} bakes {batches} batches of {food} and needs {cups} cups of flour for each batch.")
    steps = [f"{p} needs {batches} * {cups} = {used} cups of flour."]
    if t.pick(True, False):
        return question + f" {p.He} had {used + extra} cups of flour. How many cups are left?", steps + [f"There are {used + extra} - {used} = {extra} cups left."], extra
    return question + f" {p.He} has only {used - min(extra, used - 1)} cups. How many more cups does {p.he} need?", steps + [f"{p.He} has to buy {used} - {used - min(extra, used - 1)} = {min(extra, used - 1)} cups more."], min(extra, used - 1)


def ages(t):
    a, b = t.people(2)
    young, gap, years = t.num(3, 40), t.num(2, 30), t.num(2, 20)
    old = young + gap
    question = t.pick(f"{a} is {young} years old. {b} is {gap} years older than {a}.", f"{b} is {gap} years older than {a}, who is {young}.")
    steps = [f"{b} is {young} + {gap} = {old} years old."]
    kind = t.num(0, 2)
    if kind == 0:
        return question + f" How old will {b} be in {years} years?", steps + [f"In {years} years {b} will be {old} + {years} = {old + years}."], old + years
    if kind == 1:
        return question + " What is the sum of their ages?", steps + [f"Together they are {young} + {old} = {young + old} years old."], young + old
    later, later_old = young + years, old + years
    steps += [f"In {years} years {a} will be {young} + {years} = {later}.", f"In {years} years {b} will be {old} + {years} = {later_old}.",
              f"The sum will be {later} + {later_old} = {later + later_old}."]
    return question + f" What will be the sum of their ages in {years} years?", steps, later + later_old


def tickets(t):
    place = t.pick("the zoo", "the museum", "the cinema", "the circus", "the theater", "the aquarium")
    adults, children = t.num(2, 8), t.num(2, 15)
    adult, child = t.num(8, 25), t.num(3, 10)
    big, small = adults * adult, children * child
    question = t.pick(f"A ticket for {place} costs ${adult} for adults and ${child} for children. A group of {adults} adults and {children} children goes there.",
                      f"{adults} adults and {children} children visit {place}. An adult pays ${adult} and a child pays ${child}.")
    steps = [f"The adults pay {adults} * {adult} = ${big}.", f"The children pay {children} * {child} = ${small}.", f"In total they pay {big} + {small} = ${big + small}."]
    return question + t.pick(" How much do they pay in total?", " How much money is that altogether?"), steps, big + small


def minutes(t):
    p = t.person()
    tasks = t.some(["homework", "a walk", "the dishes", "piano practice", "a phone call", "lunch", "the laundry", "drawing"], 3)
    spans = [t.num(5, 60, 5) for _ in tasks]
    question = f"{p} spends {spans[0]} minutes on {tasks[0]}, {spans[1]} minutes on {tasks[1]} and {spans[2]} minutes on {tasks[2]}."
    first = spans[0] + spans[1]
    total = first + spans[2]
    steps = [f"The first two take {spans[0]} + {spans[1]} = {first} minutes.", f"With {tasks[2]} that is {first} + {spans[2]} = {total} minutes."]
    if t.pick(True, False):
        return question + " How many minutes is that in all?", steps, total
    free = t.num(10, 120, 5)
    question += f" {p.He} has {total + free} minutes. How many minutes are left?"
    return question, steps + [f"There are {total + free} - {total} = {free} minutes left."], free


def hours_to_minutes(t):
    p = t.person()
    hours, parts = t.num(2, 6), t.pick(5, 10, 12, 15, 20, 30)
    t.numbers.append(parts)
    total = hours * 60
    question = t.pick(f"{p} has {hours} hours. Each letter takes {parts} minutes to write.", f"Writing one letter takes {p} {parts} minutes, and {p.he} works for {hours} hours.")
    steps = [f"{hours} hours are {hours} * 60 = {total} minutes.", f"In that time {p.he} can write {total} / {parts} = {total // parts} letters."]
    return question + f" How many letters can {p.he} write?", steps, total // parts


def bakery(t):
    p, food = t.person(), t.pick("rolls", "buns", "donuts", "cookies", "muffins")
    trays, each = t.num(3, 12), t.num(6, 24)
    total = trays * each
    sold = t.num(5, total - 5)
    rest = total - sold
    question = t.pick(f"A bakery makes {trays} trays of {food} with {each} on each tray and sells {sold}.", f"{p} bakes {trays} trays of {each} {food}. {sold} are sold.")
    steps = [f"There are {trays} * {each} = {total} {food}.", f"After selling {sold}, there are {total} - {sold} = {rest} left."]
    divisors = [d for d in range(2, 10) if rest % d == 0]
    if divisors and t.pick(True, False):
        bag = t.any(divisors)
        t.numbers.append(bag)
        steps.append(f"In bags of {bag}, that makes {rest} / {bag} = {rest // bag} bags.")
        return question + f" The others are put in bags of {bag}. How many bags are there?", steps, rest // bag
    price = t.num(1, 4)
    if t.pick(True, False):
        steps[1] = f"Selling {sold} for ${price} each brings {sold} * {price} = ${sold * price}."
        return question + f" Each one costs ${price}. How much money comes in?", steps[1:], sold * price
    return question + f" How many {food} are left?", steps, rest


def discount(t):
    p, thing = t.person(), t.any(SHOP_THINGS)
    percent = t.pick(10, 20, 25, 50)
    t.numbers.append(percent)
    part = 100 // percent
    cut = t.num(2, 40)
    price = part * cut
    question = t.pick(f"A {thing} costs ${price}, but today it is {percent}% off.", f"The price of a {thing} is ${price}. {p} gets {percent}% off.")
    steps = [f"{percent}% of {price} is {price} / {part} = ${cut}.", f"The new price is {price} - {cut} = ${price - cut}."]
    if t.pick(True, False):
        return question + t.pick(f" How much does {p} pay for it?", " What does it cost now?"), steps, price - cut
    count = t.num(2, 6)
    steps.append(f"{count} of them cost {count} * {price - cut} = ${count * (price - cut)}.")
    return question + f" How much does {p} pay for {count} of them?", steps, count * (price - cut)


def average(t):
    p, what = t.person(), t.pick("points in a game", "laps", "miles", "emails", "pages")
    count = t.num(3, 4)
    mean = t.num(16, 40)
    values = [t.num(max(1, mean - 5), mean + 5) for _ in range(count - 1)]
    last = mean * count - sum(values)
    values.append(last)
    t.numbers.append(last)
    listed = ", ".join(map(str, values[:-1])) + f" and {values[-1]}"
    question = t.pick(f"On {count} days, {p} counted {listed} {what}.", f"The counts of {p} are {listed} {what}, one for each of {count} days.")
    steps, total = [], values[0]
    for value in values[1:]:
        steps.append(t.pick(f"Adding {value} gives {total} + {value} = {total + value}.", f"{total} + {value} = {total + value}."))
        total += value
    return question + t.pick(" What is the average per day?", f" How many is that per day on average?"), steps + [f"The average over {count} days is {total} / {count} = {mean}."], mean


def passengers(t):
    vehicle = t.pick("bus", "train", "boat", "tram")
    total = t.num(10, 60)
    question = t.pick(f"A {vehicle} leaves with {total} people.", f"There are {total} people on a {vehicle}.")
    steps = []
    for stop in ("first", "second", "third", "fourth", "fifth")[:t.num(1, 5)]:
        off, on = t.num(1, max(2, total - 1)), t.num(1, 30)
        off = min(off, total)
        question += f" At the {stop} stop {off} get off and {on} get on."
        steps += [f"At the {stop} stop {total} - {off} = {total - off} stay on.", f"Then there are {total - off} + {on} = {total - off + on} people."]
        total += on - off
    return question + f" How many people are on the {vehicle} now?", steps, total


def legs(t):
    p = t.person()
    two, four = t.pick("chickens", "ducks", "geese"), t.pick("cows", "sheep", "goats", "horses", "pigs")
    a, b = t.num(3, 30), t.num(2, 25)
    question = t.pick(f"{p} has {a} {two} and {b} {four} on a farm.", f"On the farm of {p} live {b} {four} and {a} {two}.")
    steps = [f"The {two} have {a} * 2 = {2 * a} legs.", f"The {four} have {b} * 4 = {4 * b} legs.", f"Together they have {2 * a} + {4 * b} = {2 * a + 4 * b} legs."]
    return question + " How many legs do the animals have?", steps, 2 * a + 4 * b


def production(t):
    maker, product = t.any(MACHINES)
    makers, rate, hours = t.num(2, 8), t.num(3, 15), t.num(2, 8)
    each, total = rate * hours, makers * rate * hours
    question = t.pick(f"One {maker} makes {rate} {product} in an hour. {makers} of them run for {hours} hours.", f"{makers} {maker}s work for {hours} hours. Each one makes {rate} {product} an hour.")
    steps = [f"One {maker} makes {hours} * {rate} = {each} {product}.", f"All {makers} make {makers} * {each} = {total} {product}."]
    if t.pick(True, False):
        return question + f" How many {product} are made?", steps, total
    broken = t.num(1, min(60, total - 1))
    return question + f" {broken} of the {product} are broken. How many good ones are there?", steps + [f"Without the broken ones there are {total} - {broken} = {total - broken} {product}."], total - broken


def weekdays(t):
    p, act, unit = t.person(), *t.any([("runs", "miles"), ("reads", "pages"), ("swims", "laps"), ("writes", "lines"), ("bakes", "pies")])
    work, rest, weeks = t.num(2, 20), t.num(2, 30), t.num(2, 6)
    a, b = 5 * work, 2 * rest
    question = t.pick(f"{p} {act} {work} {unit} on each of the 5 weekdays and {rest} {unit} on each of the 2 days of the weekend.",
                      f"From Monday to Friday {p} {act} {work} {unit} a day, and {rest} {unit} a day on Saturday and Sunday.")
    steps = [f"On weekdays that is 5 * {work} = {a} {unit}.", f"On the weekend that is 2 * {rest} = {b} {unit}.", f"In a week that is {a} + {b} = {a + b} {unit}."]
    if t.pick(True, False):
        return question + f" How many {unit} is that in a week?", steps, a + b
    return question + f" How many {unit} is that in {weeks} weeks?", steps + [f"In {weeks} weeks that is {weeks} * {a + b} = {weeks * (a + b)} {unit}."], weeks * (a + b)


def unit_price(t):
    p, thing = t.person(), t.any(SHOP_THINGS)
    count, price, wanted = t.num(2, 9), t.num(2, 15), t.num(2, 12)
    total = count * price
    question = t.pick(f"{p} pays ${total} for {count} {thing}s.", f"{count} {thing}s cost ${total}.")
    steps = [f"One {thing} costs {total} / {count} = ${price}."]
    if t.pick(True, False):
        return question + f" How much does one {thing} cost?", steps, price
    return question + f" How much do {wanted} {thing}s cost at this price?", steps + [f"{wanted} of them cost {wanted} * {price} = ${wanted * price}."], wanted * price


def dozens(t):
    p, thing = t.person(), t.pick("eggs", "donuts", "roses", "muffins", "rolls")
    count, used = t.num(2, 9), t.num(3, 20)
    total = 12 * count
    question = t.pick(f"{p} buys {count} dozen {thing} and uses {used} of them.", f"There are {count} dozen {thing}. {p} takes {used}.")
    steps = [f"{count} dozen are {count} * 12 = {total} {thing}.", f"Then there are {total} - {used} = {total - used} {thing} left."]
    return question + f" How many {thing} are left?", steps, total - used


def water_tank(t):
    p = t.person()
    fill, leak, hours, start = t.num(10, 40), t.num(1, 9), t.num(2, 9), t.num(5, 100)
    net = fill - leak
    gain = net * hours
    question = t.pick(f"A tank of {p} holds {start} liters. Every hour {fill} liters flow in and {leak} liters leak out.",
                      f"There are {start} liters in a tank. A pump adds {fill} liters an hour, but {leak} liters are lost each hour.")
    steps = [f"Every hour the tank gains {fill} - {leak} = {net} liters.", f"In {hours} hours it gains {hours} * {net} = {gain} liters.", f"Then it holds {start} + {gain} = {start + gain} liters."]
    return question + f" How many liters are in the tank after {hours} hours?", steps, start + gain


def school_trip(t):
    classes, teachers = t.num(2, 6), t.num(2, 12)
    buses, seats = t.num(2, 6), t.num(10, 40)
    children = buses * seats - teachers
    each, rest = divmod(children, classes)
    if rest or each < 3:
        each, classes = children, 1
    question = f"{'A school has ' + str(classes) + ' classes with' if classes > 1 else 'A school has one class with'} {each} children{' each' if classes > 1 else ''}. All the children and {teachers} teachers go on a trip in buses of {seats} seats."
    steps = [f"There are {classes} * {each} = {children} children."] if classes > 1 else []
    steps += [f"With the teachers there are {children} + {teachers} = {buses * seats} people.", f"They need {buses * seats} / {seats} = {buses} buses."]
    return question + " How many full buses do they need?", steps, buses


def game_points(t):
    p, q = t.people(2)
    goal, bonus = t.num(2, 10), t.num(2, 10)
    a, b, c = t.num(2, 12), t.num(2, 9), t.num(2, 12)
    first, second, third = a * goal, b * bonus, c * goal
    question = t.pick(f"In a game every goal gives {goal} points and every star gives {bonus} points.", f"A goal is worth {goal} points and a star is worth {bonus} points.")
    question += f" {p} gets {a} goals and {b} stars. {q} gets {c} goals and no stars."
    both = first + second
    steps = [f"The goals of {p} give {a} * {goal} = {first} points.", f"The stars give {b} * {bonus} = {second} points.", f"{p} has {first} + {second} = {both} points."]
    if t.pick(True, False):
        return question + f" How many points does {p} have?", steps, both
    steps += [f"{q} has {c} * {goal} = {third} points.", f"Together they have {both} + {third} = {both + third} points."]
    return question + " How many points do the two have together?", steps, both + third


def coins(t):
    p = t.person()
    picked = t.some([("quarters", 25), ("dimes", 10), ("nickels", 5)], t.num(1, 3))
    counts = [t.num(2, 12) for _ in picked]
    question = f"{p} has " + " and ".join(f"{count} {name}" for count, (name, _) in zip(counts, picked)) + "."
    steps, total = [], 0
    for count, (name, value) in zip(counts, picked):
        steps.append(f"The {count} {name} are worth {count} * {value} = {count * value} cents.")
        t.numbers.append(value)
        if total:
            steps.append(f"So far that is {total} + {count * value} = {total + count * value} cents.")
        total += count * value
    return question + t.pick(" How many cents is that?", f" How many cents does {p.he} have?"), steps, total


def three_days(t):
    p, act, unit = t.person(), *t.any([("sold", "cups"), ("picked", "apples"), ("counted", "birds"), ("delivered", "letters"), ("washed", "cars")])
    monday, more, factor = t.num(4, 40), t.num(2, 30), t.num(2, 4)
    words = {2: "twice", 3: "three times", 4: "four times"}[factor]
    tuesday, wednesday = monday + more, factor * monday
    question = f"On Monday {p} {act} {monday} {unit}. On Tuesday {p.he} {act} {more} more than on Monday. On Wednesday {p.he} {act} {words} as many as on Monday."
    both = monday + tuesday
    steps = [f"On Tuesday {p} {act} {monday} + {more} = {tuesday} {unit}.", f"On Wednesday {p.he} {act} {factor} * {monday} = {wednesday} {unit}.",
             f"Monday and Tuesday make {monday} + {tuesday} = {both} {unit}.", f"All three days make {both} + {wednesday} = {both + wednesday} {unit}."]
    return question + t.pick(f" How many {unit} is that in total?", " How many is that for the three days?"), steps, both + wednesday


def profit(t):
    p, thing = t.person(), t.any(SHOP_THINGS)
    count, cost, gain = t.num(3, 15), t.num(2, 20), t.num(1, 12)
    price = cost + gain
    spent, income = count * cost, count * price
    question = t.pick(f"{p} buys {count} {thing}s for ${cost} each and sells them for ${price} each.", f"{p} makes {count} {thing}s. One costs ${cost} to make and is sold for ${price}.")
    if t.pick(True, False):
        steps = [f"{p} spends {count} * {cost} = ${spent}.", f"{p.He} gets {count} * {price} = ${income}.", f"The profit is {income} - {spent} = ${income - spent}."]
    else:
        steps = [f"On each {thing} {p} gains {price} - {cost} = ${gain}.", f"On {count} of them {p.he} gains {count} * {gain} = ${count * gain}."]
    return question + t.pick(f" What is the profit of {p}?", f" How much money does {p} gain?"), steps, income - spent


KINDS = [boxes_of_things, changing_count, shopping, earning, sharing, left_over_shared, times_as_many, more_and_fewer,
         fraction_of, distance, reading, saving, saving_total, rectangle, planting, harvest, orchard, recipe, ages, tickets,
         minutes, hours_to_minutes, bakery, discount, average, passengers, legs, production, weekdays, unit_price, dozens,
         water_tank, school_trip, game_points, coins, three_days, profit]


def is_held_out(key):
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def draw_part(rng, held_out):
    """One problem of one kind on the wanted side of the split: question, steps, final, key."""
    while True:
        kind = rng.choice(KINDS)
        teller = Teller(rng)
        question, steps, final = kind(teller)
        key = f"{kind.__name__}:{','.join(map(str, teller.numbers))}"
        if is_held_out(key) == held_out:
            return question, steps, final, key


def draw_problem(rng, held_out):
    """A problem; one in four is two problems whose answers are added, which makes the long answers."""
    question, steps, final, key = draw_part(rng, held_out)
    if rng.random() < 0.25:
        question2, steps2, final2, key2 = draw_part(rng, held_out)
        total = final + final2
        question = f"{question} {question2} {rng.choice(('What is the sum of the two answers?', 'Add the two answers.'))}"
        link = rng.choice((f"The first answer is {final}.", f"That makes {final} for the first question."))
        steps = [*steps, link, *steps2, f"The sum of both is {final} + {final2} = {total}."]
        final, key = total, f"{key}&{key2}"
    if rng.random() < 0.4:
        steps = [*steps, rng.choice((f"So the answer is {final}.", f"The answer is {final}."))]
    return Problem(question, "\n".join([*steps, f"#### {final}"]), final, key)


def problems(seed, count, held_out):
    """`count` problems of one side of the split, a pure function of the arguments."""
    rng = random.Random(seed)
    return [draw_problem(rng, held_out) for _ in range(count)]


def write_held_out(path, count, seed):
    """The evaluation file: distinct keys, none of them (or of their parts) among a large sample of training problems."""
    chosen = {}
    for problem in problems(seed, 4 * count, held_out=True):
        chosen.setdefault(problem.key, problem)
    chosen = list(chosen.values())[:count]
    assert len(chosen) == count
    training = problems(seed + 1, 50_000, held_out=False)
    assert not {part for p in chosen for part in p.key.split("&")} & {part for p in training for part in p.key.split("&")}
    assert not {p.question for p in chosen} & {p.question for p in training}
    with open(path, "w") as out:
        for p in chosen:
            out.write(json.dumps({"question": p.question, "answer": p.answer, "final": str(p.final)}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", type=int, metavar="N", help="write N held-out problems to --out")
    parser.add_argument("--out", default="checkpoints/tiny/eval.jsonl")
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--show", type=int, metavar="N", help="print N training problems and the mix of kinds")
    args = parser.parse_args()
    if args.held_out:
        write_held_out(args.out, args.held_out, args.seed)
    if args.show:
        shown = problems(args.seed, max(args.show, 2000), held_out=False)
        for p in shown[:args.show]:
            print(p.question, p.answer, sep="\n", end="\n\n")
        print(collections.Counter(p.key.split(":")[0] for p in shown))


if __name__ == "__main__":
    main()
