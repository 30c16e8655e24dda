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
    "first": """Ada Ben Clara David Emma Frank Henry Iris James Kate Leo Maria Nick Olga Paul Sam Tina Victor
        Alice Bob Carol Daniel Elena Gina Hugo Ivan Julia Karl Laura Nora Peter Rachel Steve Tom Uma Walter
        Xavier Zoe Adam Diana Eric Fiona George Hannah Kevin Linda Martin Oliver Robert Sarah Thomas Ursula
        Wendy Anna Brian Ella Fred Harry Irene Jason Karen Lucas Megan Nathan Owen Patrick Ruth Simon Tony
        Albert Betty Charles Donna Edward Gary Helen Kelly Larry Mary Neil Pamela Sandra William Amy Andrew
        Barbara Gordon Jean Joseph Lisa Michael Philip Susan Ahmed Chen Priya Yuki Fatima Carlos Dmitri Amina
        Kofi Leila Aaron Abigail Adrian Agnes Aisha Alan Albertina Alex Alfred Alicia Alison Alma Alvin
        Amanda Amelia Amir Ana Andre Angela Angus Anita Annette Anthony Antonio Arjun Arnold Arthur Aurora
        Axel Barry Beatrice Benjamin Bernard Bertha Beth Bianca Bill Bjorn Bonnie Brandon Brenda Bridget
        Bruce Calvin Camille Carl Carla Carmen Caroline Casper Cathy Cecilia Cedric Celia Chad Charlotte
        Chloe Christina Christopher Cindy Claire Claude Claudia Clement Cliff Clive Colin Connor Conrad
        Constance Cora Craig Cynthia Cyril Damian Danielle Daphne Darren Deborah Denise Dennis Derek Desmond
        Dominic Don Doris Douglas Duncan Edgar Edith Edmund Edwin Eileen Elaine Eleanor Eli Elias Elizabeth
        Ellen Elliot Elsa Elvira Emil Emily Enid Erica Ernest Ethan Eugene Eva Eve Faith Felicity Felipe
        Ferdinand Fernando Flora Francis Franz Freddie Frida Gabriel Gail Gareth Gavin Gemma Geoffrey Gerald
        Gertrude Gilbert Giovanni Gladys Glen Gloria Graham Greg Greta Guy Gwen Hamza Hans Harold Harriet
        Harvey Hassan Hector Heidi Henrik Herbert Herman Hilda Holly Horace Howard Humphrey Ian Ibrahim Ida
        Ignacio Imran Isaac Isabel Ismael Ivy Jack Jade Jamal Jan Jane Janet Janice Jared Jasmine Javier Jeff
        Jennifer Jeremy Jerome Jerry Jesse Jessica Jill Jim Joan Joanna Joe Joel Johann John Johnny Jonas
        Jonathan Jordan Jorge Jose Josef Josephine Joshua Joy Joyce Juan Judith Judy Julian Juliet Justin
        Kamal Karim Katherine Kathleen Katie Keith Ken Kenneth Kim Kirsten Klaus Kurt Kyle Lana Lance Lars
        Latif Laurence Lena Leon Leonard Leslie Lewis Liam Lillian Lily Lionel Lloyd Lois Lorenzo Lorna Louis
        Louisa Lucia Lucy Luigi Luis Luke Lydia Mabel Madeleine Malcolm Manuel Marc Margaret Marie Marina
        Mario Marion Marjorie Mark Marlene Martha Marvin Matilda Matthew Maurice Maya Melanie Melissa
        Michelle Miguel Mike Mildred Miles Minnie Miranda Miriam Mohammed Molly Monica Morgan Moses Muriel
        Myra Nadia Nancy Naomi Natalie Ned Nelson Nicholas Nicole Nigel Niklas Noah Noel Norma Norman Octavia
        Olivia Otto Paolo Pauline Pearl Pedro Peggy Penelope Percy Phoebe Phyllis Pierre Priscilla Quentin
        Quincy Rafael Ralph Ramon Randy Raymond Rebekah Regina Reginald Rhoda Ricardo Richard Rita Robin
        Roderick Rodney Roger Roland Roman Ronald Rose Roy Rudolf Russell Ryan Sabrina Sally Samantha Samuel
        Sasha Saul Sean Sebastian Selina Seth Shane Sharon Sheila Shirley Sidney Sigrid Silvia Sofia Sonia
        Sophie Stanley Stella Stephen Stewart Stuart Sven Sybil Sylvester Tamara Tanya Ted Teresa Terry Tessa
        Thea Theodore Tiffany Timothy Tobias Toby Todd Trevor Tristan Trudy Una Valerie Vanessa Vernon
        Veronica Vicky Vincent Viola Virginia Vivian Wallace Walt Wanda Warren Wayne Wilfred Willa Winifred
        Winston Wolfgang Yasmin Yolanda Yusuf Yvonne Zachary Zainab Zelda Ravi Sanjay Mina Hiro Takeshi Ling
        Wei Jun Soo Amara Chidi Ngozi Kwame Zuri Lupita Thabo Nomsa Aziz Leyla Farid Nasrin Igor Natasha
        Svetlana Oleg Bohdan Milena
        | Grace Rosa Vera Yara Chris Nina Theresa Florence Jacob Violet Dorothy Evan Heather Rebecca Scott
        Tracy Ingrid Theo Magda Rupert Salma Kenji Ines Boris Mei Tariq Astrid Pablo Anika Dylan Esther
        Gustav Freya Omar Hazel Marcus""",
    "surname": """Smith Jones Taylor Brown Wilson Evans Roberts Walker Wright Thompson Hughes Edwards Clarke
        Jackson Turner Parker Collins Morris Cooper Ward Novak Rossi Schmidt Tanaka Silva Adams Allen
        Anderson Andrews Armstrong Arnold Atkinson Bailey Baker Barnes Barrett Bates Bell Benson Berg Berry
        Bishop Black Blake Bond Bowman Boyd Bradley Brooks Bruce Bryant Burke Burns Burton Butler Byrne
        Cameron Campbell Carlson Carter Chambers Chandler Chapman Cohen Cole Coleman Conway Cook Cox Crawford
        Cross Cruz Cunningham Curtis Dalton Davies Davis Dawson Dean Dixon Doyle Drake Duncan Dunn Eliot
        Ellis Ferguson Fernandez Fletcher Flynn Ford Foster Fowler Fox Freeman French Fuller Garcia Gardner
        Gibson Gilbert Gomez Gonzalez Goodman Gordon Graham Grant Gray Green Greene Griffin Gupta Hall
        Hamilton Hansen Hardy Hart Hayes Henderson Hill Hoffman Holmes Holt Hopkins Howard Hubbard Hudson
        Hunt Hunter Ibrahim Ivanov Jensen Johansson Johnson Johnston Jordan Kaufman Keller Kelley Kennedy
        Khan King Klein Knight Kowalski Kumar Lambert Larsen Lawrence Lawson Lee Lewis Long Lopez Lynch
        Marshall Martinez Mason Matthews Mendoza Meyer Miller Mills Moore Morgan Morrison Muller Murphy
        Murray Nelson Newman Nguyen Nichols Nielsen Norris Olsen Osborne Owens Page Palmer Pearson Pereira
        Perez Perry Peters Peterson Phillips Porter Powell Price Quinn Ramirez Reed Reyes Reynolds Rice
        Richards Richardson Riley Rivera Robertson Robinson Rogers Rose Ross Russell Ryan Sanchez Sanders
        Santos Sato Saunders Schneider Schwartz Sharma Shaw Shepherd Simmons Simpson Singh Spencer Stanley
        Stein Stevens Stewart Stone Sullivan Sutton Suzuki Torres Tucker Vargas Vaughn Wagner Wallace Walsh
        Warren Watkins Watson Weaver Webb Weber Wells West Wheeler White Williams Williamson Winters Wolf
        Wood Woods Yamamoto Young Ziegler Zimmerman
        | Harrison Bennett Mitchell Carpenter Lindqvist Okafor Moreau Petrov Fischer Delgado Whitaker
        Nakamura""",
    "city": """London, Paris, Rome, Berlin, Madrid, Vienna, Dublin, Moscow, Tokyo, Boston, Chicago, Seattle,
        Denver, Sydney, Cairo, Delhi, Athens, Prague, Dallas, Toronto, Houston, Lima, Miami, Munich, New
        York, San Francisco, Buenos Aires, Cape Town, Amsterdam, Antwerp, Auckland, Austin, Baghdad,
        Baltimore, Barcelona, Basel, Beijing, Belfast, Belgrade, Bergen, Bilbao, Birmingham, Bogota, Bologna,
        Bombay, Bordeaux, Brisbane, Bristol, Brussels, Bucharest, Budapest, Calgary, Cambridge, Canberra,
        Caracas, Cardiff, Casablanca, Cleveland, Cologne, Copenhagen, Cork, Damascus, Detroit, Dresden,
        Dubai, Durban, Edinburgh, Frankfurt, Gdansk, Genoa, Glasgow, Granada, Halifax, Hanoi, Havana,
        Hiroshima, Istanbul, Jakarta, Jerusalem, Johannesburg, Kabul, Karachi, Kiev, Kingston, Kyoto, Lagos,
        Leeds, Leicester, Leipzig, Liverpool, Ljubljana, Lyon, Malaga, Manchester, Manila, Melbourne,
        Memphis, Milan, Minsk, Nagoya, Naples, Nashville, Newcastle, Nice, Norwich, Nottingham, Odessa,
        Orlando, Osaka, Ottawa, Oxford, Palermo, Perth, Philadelphia, Phoenix, Pisa, Pittsburgh, Plymouth,
        Portland, Porto, Quebec, Quito, Reykjavik, Riga, Rotterdam, Salzburg, Santiago, Sarajevo, Seoul,
        Seville, Shanghai, Sheffield, Singapore, Sofia, Stockholm, Strasbourg, Stuttgart, Tampa, Tehran,
        Tunis, Turin, Valencia, Vancouver, Venice, Verona, Vilnius, Washington, Wellington, York, Zagreb,
        Zurich, New Orleans, San Diego, Las Vegas, Mexico City, Tel Aviv, Addis Ababa, Rio de Janeiro, Kansas
        City
        | Oslo, Lisbon, Helsinki, Montreal, Geneva, Nairobi, Warsaw, Bangkok, Atlanta, Hamburg, Los Angeles,
        Hong Kong, Kuala Lumpur, Marseille""",
    "country": """France, Spain, Italy, Poland, Greece, Norway, Egypt, Brazil, Canada, India, China, Japan,
        Chile, Turkey, Ireland, Sweden, Mexico, South Africa, New Zealand, Algeria, Argentina, Armenia,
        Australia, Austria, Belgium, Bolivia, Bulgaria, Cambodia, Cameroon, Colombia, Croatia, Cyprus,
        Denmark, Ecuador, Estonia, Ethiopia, Fiji, Georgia, Germany, Ghana, Haiti, Hungary, Indonesia, Iran,
        Iraq, Israel, Jamaica, Jordan, Kuwait, Laos, Latvia, Lebanon, Libya, Lithuania, Madagascar, Malaysia,
        Mali, Malta, Mongolia, Namibia, Nepal, Nigeria, Oman, Pakistan, Panama, Paraguay, Qatar, Romania,
        Russia, Rwanda, Scotland, Senegal, Serbia, Slovakia, Slovenia, Somalia, Sudan, Switzerland, Syria,
        Taiwan, Tanzania, Thailand, Tunisia, Uganda, Ukraine, Uruguay, Venezuela, Wales, Yemen, Zambia,
        Zimbabwe, North Korea, El Salvador, Saudi Arabia, Burkina Faso
        | Kenya, Peru, Finland, Portugal, Vietnam, Iceland, Cuba, Morocco, Sri Lanka, Costa Rica""",
    "colour": """red blue green yellow black white brown orange purple pink gold beige cream maroon navy
        scarlet tan teal copper lilac cyan magenta mustard khaki coral peach
        | grey silver violet crimson turquoise""",
    "animal": """dog cat horse parrot rabbit snake goat turtle mouse fish pig duck sheep frog spider bear
        beaver camel chicken cockatoo crab crocodile crow deer dolphin dove dragonfly falcon gecko gerbil
        giraffe goose guinea hawk hedgehog hen hippo kangaroo koala lamb leopard llama lobster magpie mole
        moose mule newt panda panther peacock penguin pheasant pigeon puppy raccoon ram raven robin rooster
        salamander scorpion seal shark sheepdog skunk sloth sparrow starling stork swallow toad turkey
        vulture walrus weasel whale wolf wombat zebra tarantula chameleon budgie poodle beagle tortoise
        | hamster lizard pony monkey donkey squirrel ferret""",
    "animals": """dogs cats horses birds snakes spiders wolves bears bees mice sharks ants bats beetles bulls
        camels chickens cows crabs crocodiles crows deer ducks eels frogs geese goats hornets jellyfish
        kittens lobsters moths owls parrots penguins pigeons pigs rabbits scorpions seagulls sheep slugs
        swans tarantulas toads turkeys turtles vultures wasps whales worms dragons puppies ponies
        | lions rats foxes tigers""",
    "job": """baker, nurse, pilot, farmer, teacher, lawyer, painter, sailor, doctor, cook, writer, singer,
        dancer, soldier, judge, plumber, driver, barber, police officer, music producer, civil engineer,
        banker, blacksmith, bookseller, bricklayer, broker, builder, cartoonist, cashier, chef, chemist,
        cleaner, clerk, coach, comedian, composer, conductor, courier, curator, dentist, designer, detective,
        diplomat, director, diver, fireman, fisherman, florist, gamekeeper, glazier, governess, grocer,
        guard, hairdresser, hunter, jeweller, jockey, juggler, magician, mason, mathematician, mayor,
        mechanic, merchant, midwife, miller, miner, minister, model, monk, musician, nanny, notary, novelist,
        paramedic, pharmacist, photographer, physicist, plasterer, poet, porter, postman, potter, priest,
        printer, professor, programmer, ranger, receptionist, reporter, roofer, scientist, sculptor,
        secretary, shepherd, shoemaker, smith, sociologist, statistician, steward, stonemason, therapist,
        translator, trader, tutor, typist, veterinarian, waiter, watchmaker, weaver, welder, wrestler,
        zoologist, bus driver, flight attendant, tour guide, bank manager, ship captain, tax adviser, crane
        operator, piano tuner
        | butcher, librarian, surgeon, gardener, journalist, tailor, locksmith, geologist, taxidermist,
        beekeeper""",
    "fruit": """apple banana cherry grape lemon orange peach pear plum melon fig blackberry blueberry coconut
        cranberry currant date gooseberry grapefruit mandarin nectarine olive papaya persimmon pomegranate
        quince raspberry strawberry tangerine watermelon guava
        | mango kiwi lime pineapple apricot""",
    "food": """rice, soup, bread, cheese, fish, beef, cake, pasta, salad, honey, butter, pizza, roast
        chicken, fried potatoes, mushroom stew, bacon, barley, broccoli, cabbage, carrots, cauliflower,
        celery, cereal, chicken, chips, cookies, crackers, cream, cucumber, curry, custard, duck, eggs,
        fudge, ham, jam, kale, lamb, lasagna, lettuce, lobster, macaroni, marmalade, meatballs, muffins,
        mushrooms, mustard, mutton, nuts, oats, omelette, onions, pastries, peanuts, peas, pickles, pie,
        popcorn, pork, porridge, potatoes, pudding, pumpkin, radish, ravioli, risotto, sausages, shrimp,
        spaghetti, spinach, steak, sushi, syrup, tacos, toast, tofu, tomatoes, tuna, turkey, turnips, veal,
        vegetables, venison, waffles, yoghurt, apple pie, fish cakes, green salad, tomato soup, scrambled
        eggs, grilled cheese, rice pudding
        | beans, garlic, corn, chocolate, noodles, lentils, pancakes, dumplings, smoked salmon""",
    "drink": """tea coffee milk water juice wine beer soda rum ale champagne port punch sherry smoothie vodka
        cognac espresso latte mead milkshake tequila vermouth buttermilk eggnog cappuccino squash bourbon
        | cider lemonade cocoa whiskey gin brandy""",
    "instrument": """piano violin guitar flute drum trumpet harp cello horn banjo bagpipes bass bassoon bugle
        cymbals fiddle glockenspiel gong harmonica harpsichord keyboard lute lyre panpipes piccolo recorder
        sitar tambourine trombone viola xylophone zither bongo concertina
        | clarinet oboe saxophone tuba mandolin accordion""",
    "hobby": """chess painting fishing sailing hiking dancing cooking reading skiing swimming running boxing
        golf badminton baking basketball birdwatching camping carving climbing cricket croquet curling
        cycling darts diving drawing embroidery fencing football gaming hockey hunting juggling karate
        kayaking lacrosse magic origami quilting riding rowing rugby sculpting sewing singing skateboarding
        skating snooker squash trekking volleyball walking weaving woodwork wrestling yoga backgammon bridge
        checkers genealogy calligraphy
        | knitting gardening photography tennis poker surfing pottery archery""",
    "month": "January February March May June July August October December | April September November",
    "day": "Monday Tuesday Wednesday Friday Saturday | Thursday Sunday",
    "language": """French German Spanish Italian Russian Chinese Polish Dutch Greek English Albanian Basque
        Bengali Bulgarian Catalan Croatian Czech Danish Estonian Finnish Georgian Hebrew Hungarian Icelandic
        Indonesian Irish Lithuanian Malay Maltese Mongolian Nepali Norwegian Persian Portuguese Punjabi
        Romanian Serbian Slovak Swahili Tamil Thai Tibetan Ukrainian Urdu Vietnamese Welsh Yiddish Zulu
        | Japanese Turkish Arabic Hindi Swedish Korean""",
    "subject": """math history physics biology chemistry music art law philosophy medicine algebra anatomy
        anthropology archaeology architecture botany calculus civics computing drama ecology engineering
        ethics finance genetics geometry grammar journalism linguistics literature logic mathematics
        mechanics metaphysics nutrition painting politics religion rhetoric science sociology statistics
        theology trigonometry zoology
        | geography economics astronomy Latin geology psychology""",
    "car": """Ford Toyota Honda Fiat Volvo Tesla Jeep Kia Porsche Bentley Bugatti Buick Cadillac Chevrolet
        Chrysler Citroen Dodge Hyundai Jaguar Lada Lamborghini Lancia Lexus Lincoln Lotus Maserati Mercedes
        Mitsubishi Peugeot Pontiac Saab Seat Skoda Suzuki Vauxhall Volkswagen
        | Mazda Nissan Subaru Ferrari Renault""",
    "tree": """oak pine maple birch cedar willow palm acacia alder ash aspen bamboo cherry cypress dogwood
        ebony eucalyptus hawthorn hickory holly juniper larch laurel magnolia mahogany mulberry olive pear
        plum poplar redwood rowan sequoia spruce sycamore teak yew
        | elm beech fir walnut chestnut""",
    "metal": """iron gold copper tin lead steel aluminium chromium cobalt lithium magnesium mercury palladium
        platinum plutonium sodium titanium tungsten uranium calcium potassium
        | silver zinc bronze brass nickel""",
    "object": """watch book lamp kite camera guitar clock mirror bicycle scarf hat ring vase blanket backpack
        balloon bell belt boomerang bottle bow bracelet broom brooch brush bucket calculator calendar candle
        cane card chain chessboard cloak coat comb computer cup dictionary doll dress drill drum fan flag
        flute football fork frame glove goblet hammer hammock handbag harmonica harp helmet jacket jar jigsaw
        keyboard kettle ladder laptop letter lighter locket map marble mask medal microphone microscope mug
        notebook novel pan parachute pen pencil pendant phone photo piano pipe plate pot purse quilt racket
        raincoat razor robe rope rug ruler saddle sandal saw scissors screwdriver shawl shield shirt shovel
        skateboard slipper spoon stapler stool suit sweater tablet tent thermometer ticket tie torch toy tray
        tripod trumpet typewriter vest violin wand wig wrench yoyo tapestry painting statue hourglass
        pocketknife flask
        | knife radio coin wallet puzzle teapot necklace telescope""",
    "place": """bank, church, school, library, station, hospital, museum, market, bridge, tower, town hall,
        barracks, bookshop, bus stop, cafe, campsite, canal, casino, cemetery, chapel, cinema, college,
        corner shop, courthouse, dairy, dam, dock, factory, farm, fire station, forest, fountain, garage,
        gallery, garden centre, gate, gym, hotel, jail, jetty, kindergarten, lake, laundry, mall, mill, mine,
        monastery, monument, mosque, motel, nursery, palace, park, pier, playground, police station, pool,
        port, post office, prison, pub, racecourse, reservoir, restaurant, river, sawmill, shipyard, shrine,
        stable, studio, supermarket, swimming pool, synagogue, temple, vineyard, warehouse, waterfall, well,
        workshop
        | harbour, stadium, bakery, theatre, castle, pharmacy, lighthouse, bowling alley""",
    "store": """drawer, box, kitchen, cellar, garage, bathroom, bag, cupboard, glove compartment, backpack,
        balcony, bathtub, bedroom, boot, bottle, bucket, bunker, cabin, cabinet, car, cave, chest, chimney,
        coffin, conservatory, crate, desk, dining room, dishwasher, dresser, filing cabinet, fridge, garden,
        guest room, hall, handbag, hedge, hut, jar, kennel, library, locker, lorry, mailbox, nursery, pantry,
        parcel, piano, pocket, porch, pot, purse, rucksack, sack, safe, saucepan, shed, sink, stable, study,
        tent, toolbox, trunk, vase, vault, washing machine, wheelbarrow, workshop
        | attic, closet, basket, suitcase, barn, freezer""",
    "furniture": """table chair bed shelf desk lamp door bookcase bunk cabinet chest cot couch cradle
        cupboard dresser footstool hammock hatstand mattress mirror pew rack rocker rug screen sideboard
        stool throne trunk wastebasket workbench
        | carpet sofa bench pillow stairs wardrobe fireplace""",
    "goods": """shoes boats chairs phones lamps cars candles bottles clocks shirts books bags balls bells
        belts bicycles blankets bricks brushes buttons carpets coats computers cups curtains dolls doors
        dresses envelopes fences flags forks gloves guitars hammers hats jackets jars kettles keys knives
        ladders lenses locks mirrors mugs nails needles pans paper pencils pens perfumes pianos pipes plates
        pots radios ropes rugs saddles scarves screws skates soaps socks spoons stoves swords tables tiles
        tools towels toys trucks violins wallets wheels windows
        | engines tents stamps masks umbrellas helmets mattresses""",
    "sort": """tool bird fish flower boat dance hat cake weapon plant fruit berry bread breed card cart
        cheese cloth coat dog drink drum fence game gem grass hammer horse jewel lamp mineral mushroom poem
        rock rope sailboat sandwich sauce saw shell shoe snack soup spice spider tea tent tree vase vegetable
        vehicle wine
        | song knot beetle dessert sword fabric""",
    "pet": """Rex Max Bella Spot Luna Buddy Rocky Daisy Coco Simba Shadow Ginger Pepper Ace Alfie Apollo
        Archie Bandit Barney Bear Bingo Blaze Bonnie Boots Buster Button Captain Casper Chester Chico Chip
        Cleo Clover Cody Cookie Cosmo Dash Dexter Diesel Domino Duke Dusty Fang Fluffy Ghost Goldie Gus
        Hercules Honey Hunter Jasper Jet Kiki King Kit Lady Loki Lucky Lulu Marley Maximus Merlin Mocha Monty
        Muffin Nala Noodle Nugget Oreo Patch Peanut Pebbles Penny Pippin Pluto Poppy Prince Puff Pumpkin
        Rascal Romeo Rover Rusty Sable Sammy Scamp Scout Skipper Smokey Snowball Socks Sparky Stormy Sunny
        Tiger Tinker Toffee Toto Trixie Tucker Whiskers Winnie Ziggy Zorro
        | Milo Oscar Ruby Felix Bruno Misty Biscuit Pixel""",
    "count": "one two four five six eight nine ten twelve twenty | three seven eleven thirteen fifteen",
    "topic": """war, plants, stars, money, water, trees, rivers, energy, trade, health, brains, old maps,
        animals, art, bees, birds, bridges, castles, chess, children, cities, clocks, coffee, crime, dance,
        dreams, farming, fashion, film, fishing, food, football, forests, gardens, glaciers, gold, grammar,
        islands, justice, kings, language, law, lighthouses, love, magic, maps, memory, mining, monks,
        mountains, music, oceans, peace, philosophy, pirates, planets, politics, railways, rain, religion,
        robots, ships, silk, sleep, snow, spies, sports, storms, taxes, travel, unemployment, weather,
        weddings, whales, wine, wolves, women, wool, ancient Rome, modern art, free will
        | poetry, volcanoes, ghosts, democracy, dinosaurs, comets, deep caves""",
    "deed": """run swim wait listen dance sing jump write read walk argue bake begin breathe bow build camp
        carve cheer clap complain cook cough count crawl cry cycle dig dive drink drive eat explore fall
        fight fish float fly forget forgive freeze gallop giggle grow hide hop hunt hurry kick kneel laugh
        learn march nod paint play promise remember ride row scream share shave shout shrug sit skate ski
        sleep slip smoke sneeze sob speak spin stand stay stretch study surrender sweep talk teach think
        travel vote wash wave weep work worry wrestle yawn
        | rest whisper climb smile apologise pray""",
    "secret": """river stone candle window garden mirror thunder ladder pepper hammer feather button island
        shadow forest marble rocket acorn anvil apple arrow autumn badger bamboo barrel beacon blossom bottle
        boulder bridge bubble bucket cactus cavern cedar chapel cherry chimney cinnamon clover cobalt cobweb
        copper coral cotton crater cricket crystal daisy dolphin domino dragon echo ember emerald falcon
        fiddle flannel flute fountain galaxy garnet gazelle ginger glacier goblet granite gravel guitar
        hamlet harvest hazelnut helmet hermit hickory honey hornet iceberg igloo indigo ivory jacket jaguar
        jasmine jewel jigsaw juniper kettle kingdom koala ladle lagoon laurel leopard lichen lily linen
        locket lotus lupine maple meteor mitten monsoon moss mustard napkin nectar nutmeg oasis ocean olive
        onyx opal orchid otter oyster paddle palace panther paper parrot peacock pebble pelican pencil
        phantom pigeon pine planet plum pocket pollen prairie pyramid quartz quiver raven reef ripple robin
        saddle saffron sailor sapphire scarlet shell sparrow spruce squall starfish statue stirrup summit
        sunset tambourine teacup temple thimble thistle thorn timber topaz torch tornado trumpet tulip turnip
        valley vessel violin waterfall whale willow winter wizard zebra zenith zephyr
        | needle anchor tunnel lantern pillow magnet compass ribbon""",
    "inn_a": """Golden Blue Old Royal Black Red White Little Bold Brave Bright Broken Brown Cosy Dancing
        Faithful Flying Fortunate Friendly Green Happy Hungry Iron Jolly Laughing Lazy Lonely Lucky Mad New
        Noble Proud Quiet Restless Running Rusty Silent Singing Sleepy Smiling Thirsty Wandering Weary Wild
        Wise Yellow
        | Crooked Merry Hidden Drunken Amber""",
    "inn_b": """Lion Star Horse Tower Garden River Bell Anvil Arms Bear Boar Boot Bull Bush Candle Cart Cat
        Cock Cow Crow Dog Dolphin Dove Dragon Drum Duck Falcon Feathers Fiddle Fish Fox Gate Goat Goose Hare
        Hart Hound Jug Key King Lamb Lamp Maid Miller Monk Moon Oak Otter Owl Peacock Pheasant Pig Pike
        Plough Queen Ram Raven Sailor Ship Shepherd Stag Stork Sun Thistle Wheel Wolf
        | Crown Swan Eagle Windmill Anchor""",
    "street_a": """Mill Park Church King High Station Albert Ash Baker Bell Birch Bridge Canal Cedar Chapel
        Cherry Cliff College Cross Dock East Field Forest Garden Gate George Grove Hill Holly Ivy Lake Laurel
        London Long Manor Maple Market New North Oak Pine Pond Poplar Priory Queen River School South Spring
        Temple Tower Valley Victoria Water West Willow York
        | Harbour Orchard Abbey Quarry Meadow""",
    "street_b": """Street Road Avenue Drive Way Close Court Row Crescent Boulevard Gardens Hill
        | Lane Square Terrace""",
    "title_a": """Silent Broken Long Last Stolen Ancient Bitter Blind Bright Burning Cold Dark Empty Endless
        Eternal Fallen Final First Frozen Golden Great Invisible Little Lonely Lost Mad Nameless Narrow New
        Noble Northern Old Painted Perfect Pale Quiet Red Sacred Second Secret Seventh Shining Sleeping Small
        Strange Sunken Sweet Third Unknown Wandering White Wild Wicked Yellow
        | Forgotten Hollow Distant Gentle""",
    "title_b": """Garden House Letter Road River Army Bell Bird Book Boy Bride Bridge Captain Child City
        Coast Country Dance Daughter Day Door Dream Emperor Empire Father Field Forest Game Gate Ghost Girl
        Hour Hunter Island Journey King Kingdom Lake Mirror Mountain Music Night Ocean Palace Path Prince
        Promise Queen Room Sea Season Secret Ship Shore Sister Soldier Stone Storm Stranger Summer Tower
        Train Tree Village Wall War Winter Witness Wolf World Year
        | Voyage Cathedral Orchard Clockmaker""",
    "title_c": """Rain Glass Snow Fire Gold Air Autumn Blood Bone Bread Chance Clay Clouds Copper Dawn Desire
        Dust Earth Envy Fear Flowers Fog Grass Honey Hope Ice Iron Ivory Jade Lies Life Light Love Marble
        Memory Mercy Milk Mist Mud Night Paper Power Pride Roses Sand Shadows Silence Silk Smoke Sorrow Stars
        Steel Stone Straw Thunder Time Truth War Water Wind Wine Winter Wood
        | Midnight Ashes Salt Velvet""",
    "onset": "b d g k l m r s t v br dr gr kr tr c ch sh sm sn st sw th tw y | f h j n p w z fl pl sk",
    "site": """mail.com post.net office.com home.net letterbox.org town.eu inbox.io paper.co
        | webmail.org letters.eu""",
}


def traits(**names: str) -> dict[str, str]:
    """Of each trait, of what kind it is."""
    return {" ".join(trait.split()): kind for kind, listed in names.items() for trait in listed.split(",")}


# What a person has one of, by what kind of thing it is.
TRAITS = {
    "train": traits(
        colour="""favourite colour, hair colour, eye colour, team colour, bedroom colour, karate belt, front
            door, pen colour""",
        city="home town, birthplace, wedding city, home airport, university town, retirement town",
        animal="pet, favourite animal, first pet, club mascot, carnival costume, tattoo, family crest",
        job="job, first job, side job, father's trade, part in the play, apprenticeship",
        fruit="favourite fruit, breakfast fruit, yoghurt flavour",
        instrument="instrument, first instrument, exam instrument",
        drink="favourite drink, nightcap, usual order, morning drink",
        hobby="hobby, main sport, evening course, childhood pastime",
        month="birth month, wedding month, renewal month, month of leave",
        car="car",
        count="lucky number",
        subject="best subject, major, minor, thesis field",
        tree="favourite tree, memorial tree, birth tree",
        secret="secret word, password, safe word",
        language="native language, working language, exam language, language at home",
        food="favourite food, comfort food, packed lunch, usual breakfast, late snack",
        day="day off, gym day, payday, visiting day",
        phone="emergency number, mobile number, work phone",
        date="birthday, wedding day, next check-up, due date",
        address="home address, billing address, work address",
        pet="nickname, code name, boat's name",
        serial="customer number, tax number, loyalty card",
        hexadecimal="access token, licence key, device ID",
        title="favourite film, bedside book, audition piece, ringtone, bedtime story, bath-time reading",
        country="country of birth, citizenship, exchange country, ancestral homeland",
        animals="biggest fear, field of study",
        metal="wedding ring",
        object="lucky charm, parting gift, raffle prize, family heirloom, latest purchase",
        place="workplace, meeting point, wedding venue, polling place",
        store="hiding place",
        furniture="masterpiece",
        goods="line of business, collector's item",
        topic="talk topic, podcast theme",
        surname="maiden name, landlord, line manager",
        invented="stage name, username, employer, bank",
        tens="age, jersey number, parking space",
        hundreds="room number",
        thousands="locker code, staff number, PIN",
        time="wake-up time, bedtime, lunch break",
        year="birth year, graduation year",
        price="hourly rate, monthly bus fare",
        plate="number plate",
        seat="plane seat",
        inn="local pub, lunch spot",
        email="work email, recovery email",
    ),
    "eval": traits(
        metal="preferred metal",
        language="second language",
        job="dream profession",
        food="hated dish",
        subject="worst class",
        country="holiday destination",
        day="cleaning day",
        plate="passport number",
        title="signature tune",
        animal="spirit creature",
    ),
}


MIDDLES = (*"bdgklmnrstvz", "br", "gr", "kr", "tr")  # of invented words


@functools.cache
def listed(kind: str, split: str) -> tuple[str, ...]:
    """The words of a kind that belong to a split."""
    words = LISTS[kind].split("|")[split == "eval"]
    return tuple(" ".join(word.split()) for word in words.split(",")) if "," in words else tuple(words.split())


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
