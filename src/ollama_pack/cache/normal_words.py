"""The words of the normal form, in English: which say the same, which say nothing, and whose case matters.

A word is on a list only where swapping or dropping it changes the answer of no question that a person would
ask. Where there is doubt it is not here, and the model answers.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _pairs(text: str) -> dict[str, tuple[str, ...]]:
    """`one=another two; …` as what each word is replaced with."""
    rows = (row.partition("=") for row in text.split(";"))
    return {word.strip(): tuple(said.split()) for word, _, said in rows}


CONTRACTIONS = _pairs(
    """
    don't=do not; doesn't=does not; didn't=did not; isn't=is not; aren't=are not; wasn't=was not;
    weren't=were not; haven't=have not; hasn't=has not; hadn't=had not; can't=can not; cannot=can not;
    couldn't=could not; won't=will not; wouldn't=would not; shouldn't=should not; mustn't=must not;
    needn't=need not; mightn't=might not; dont=do not; doesnt=does not; didnt=did not; isnt=is not;
    arent=are not; wasnt=was not; werent=were not; couldnt=could not; wouldnt=would not; shouldnt=should
    not; what's=what is; whats=what is; where's=where is; wheres=where is; who's=who is; how's=how is;
    when's=when is; why's=why is; that's=that is; thats=that is; there's=there is; here's=here is;
    it's=it is; he's=he is; she's=she is; let's=let us; i'm=i am; im=i am; you're=you are; we're=we are;
    they're=they are; i've=i have; you've=you have; we've=we have; they've=they have; i'll=i will;
    you'll=you will; we'll=we will; they'll=they will; it'll=it will; what're=what are; i'd=i would;
    wanna=want to; gonna=going to; gotta=got to; u=you; ur=your; pls=please; plz=please; thx=thanks;
    an=a; vs=versus; vs.=versus; v.s.=versus; kindly=please; info=information; email=e-mail;
    emails=e-mails; fridge=refrigerator; fridges=refrigerators; kids=children; airplane=aeroplane;
    airplanes=aeroplanes; plane=plane; maths=math; biggest=largest; quickest=fastest; utilize=use;
    utilise=use; percent=%; automobile=car; automobiles=cars; drawbacks=disadvantages; us$=usd; u.s.=US;
    u.s.a.=USA; u.k.=UK; ww1=wwi; ww2=wwii; website=web-site; websites=web-sites; mum=mom; okay=ok;
    grey=gray; cosy=cozy; kilometre=km; kilometres=km; kilometer=km; kilometers=km; kilogram=kg;
    kilograms=kg; centimetre=cm; centimetres=cm; centimeter=cm; centimeters=cm; millimetre=mm;
    millimetres=mm; millimeter=mm; millimeters=mm; hrs=hours; mins=minutes; secs=seconds; two=2;
    three=3; four=4; five=5; six=6; seven=7; eight=8; nine=9; ten=10; eleven=11; twelve=12; thirteen=13;
    fourteen=14; fifteen=15; sixteen=16; seventeen=17; eighteen=18; nineteen=19; twenty=20; thirty=30;
    forty=40; fifty=50; sixty=60; seventy=70; eighty=80; ninety=90; 1st=first; 2nd=second; 3rd=third;
    4th=fourth; 5th=fifth; 6th=sixth; 7th=seventh; 8th=eighth; 9th=ninth; 10th=tenth; theatre=theater;
    theatres=theaters; fibre=fiber; fibres=fibers; litre=liter; litres=liters; metre=meter;
    metres=meters; catalogue=catalog; catalogues=catalogs; dialogue=dialog; aluminium=aluminum;
    jewellery=jewelry; tyre=tire; tyres=tires; pyjamas=pajamas; moustache=mustache; sceptical=skeptical;
    defence=defense; offence=offense; licence=license; practise=practice; programme=program;
    programmes=programs; judgement=judgment; ageing=aging; enrol=enroll; fulfil=fulfill;
    skilful=skillful; traveller=traveler; travellers=travelers; travelling=traveling;
    travelled=traveled; cancelled=canceled; cancelling=canceling; modelling=modeling; modelled=modeled;
    labelled=labeled; labelling=labeling; fuelled=fueled; counsellor=counselor; marvellous=marvelous;
    centre=center; centres=centers; centred=centered; plough=plow; doughnut=donut; doughnuts=donuts;
    yoghurt=yogurt; artefact=artifact; artefacts=artifacts; analogue=analog; tumour=tumor;
    tumours=tumors; oestrogen=estrogen; anaemia=anemia; diarrhoea=diarrhea; leukaemia=leukemia;
    paediatric=pediatric; encyclopaedia=encyclopedia; manoeuvre=maneuver; analyse=analyze;
    analysed=analyzed; analyses=analyzes; analysing=analyzing; paralyse=paralyze; paralysed=paralyzed;
    catalyse=catalyze; hotdog=hot dog; hotdogs=hot dogs
    """
)

# -our and -ise, with whatever ends may follow
OUR = _words(
    """
    colour favour favourite flavour honour humour labour neighbour neighbourhood rumour behaviour harbour
    vapour odour armour endeavour savour glamour vigour splendour parlour saviour
    """
)
ISE = _words(
    """
    organ real recogn summar memor minim maxim optim categor apolog character criticis critic emphas final
    general global hospital harmon initial ital legal local material mobil modern normal parallel personal
    plagiar popular prior random revolution serial special stabil standard sterili symbol synchron synthes
    token util vandal visual anonym author capital central custom digital econom familiar fertil industrial
    alphabet monet neutral penal social subsid terror theor tokenis virtual vocal
    """
)

# Words that are another word in another case: China is no china, IT is not it. Their case stays as it was.
CASED = _words(
    """
    polish turkey china march may us it who apple aids rust go swift ruby bill mark jack will rose grace
    hope faith joy frank nice reading job august chile jordan guinea jersey bath lima cologne mercury amazon
    windows word excel access target gap shell dart basic orange mobile cuba ham nancy dick bob don pat rob
    sue art gene ray drew grant miles chase cliff dale dean earl ernest forest gale glen guy hank harry
    heath iris ivy jasmine lance lily max melody miller nick olive pearl penny pierce randy rich robin sally
    sandy scarlet skip stone summer april june terry tiffany tom victor violet wade ward warren wood wolf
    young king queen bishop baker cook smith carpenter fisher hunter taylor turner walker brown black white
    green gray earth mars venus saturn titan nike puma jaguar ford dodge beetle mustang python cobra java
    scala perl julia crystal elixir go lisp scheme racket haskell pascal ada lua raven oracle sage slack
    teams outlook edge chrome safari opera brave notion zoom meet drive chat bard gemini claude copilot
    cursor spark kafka flink hive pig storm flask spring rails express react vue angular next nest fiber
    rocket docker swarm helm chef puppet salt vault nomad consul atom brackets sublime eclipse ant maven
    hopper ram rom cat dos arm pin sim led mac act sat gif gnu can pet gas lot roman wales danish finish
    swede hamburg frankfurter hamburger berliner danes pole poles scotch welsh alpine orient buffalo phoenix
    reno mobile buffet gates jobs cash bush house fall fields waters winters snow west east north south no
    """
)
# Names that are no word in small letters. Any other capital inside a sentence makes a name of its own.
NAMES = _words(
    """
    afghanistan africa african albania algeria american americans america amsterdam android angola antarctica
    arabic arctic argentina armenia asia asian athens atlantic auckland australia australian austria austrian
    azerbaijan baghdad bahrain bangkok bangladesh barcelona beijing belarus belgian belgium berlin bolivia
    bosnia brazil brazilian britain british brussels bucharest budapest bulgaria cairo california cambodia
    cameroon canada canadian canberra caribbean chennai chicago chinese christian christianity christmas
    colombia colombian colorado congo copenhagen croatia cuban cyprus czech damascus delhi denmark
    dubai dublin dutch ecuador edinburgh egypt egyptian england english estonia ethiopia ethiopian europe
    european fiji finland finnish florence florida france french geneva georgian german germany ghana greece
    greek guatemala hanoi havana hawaii hebrew helsinki himalayas hindi hinduism honduras houston hungarian
    hungary iceland icelandic illinois india indian indonesia indonesian iran iranian iraq iraqi ireland irish
    islam islamic israel israeli istanbul italian italy jakarta jamaica japan japanese jerusalem jewish
    judaism jupiter kabul kenya kenyan korea korean kuwait kyoto latin latvia lebanon lisbon lithuania london
    luxembourg macedonia madagascar madrid malaysia maldives manchester manila marrakech massachusetts mecca
    mediterranean melbourne mexican mexico miami michigan milan minnesota moldova monaco mongolia montenegro
    montreal moroccan morocco moscow mozambique mumbai munich muslim muslims myanmar nairobi namibia naples
    nebraska nepal neptune netherlands nevada nicaragua nigeria nigerian norway norwegian ohio oregon osaka
    oslo ottawa pakistan pakistani palestine panama paraguay paris pennsylvania persian peru peruvian
    philippines pluto portugal portuguese prague quebec reykjavik rio romania romanian russia russian
    rwanda sahara scotland seattle senegal seoul serbia shakespeare shanghai siberia sicily singapore slovakia
    slovenia somalia spain spanish stockholm sudan swahili sweden swedish switzerland sydney syria
    taiwan tanzania tehran texas thai thailand tibet tokyo toronto tunisia turkish uganda ukraine ukrainian
    uranus uruguay uzbekistan vancouver venezuela venice vienna vietnam vietnamese virginia wellington
    yemen zambia zimbabwe zurich monday tuesday wednesday thursday friday saturday sunday january february
    september october november december halloween easter ramadan hanukkah diwali einstein darwin plato
    aristotle socrates napoleon mozart beethoven picasso hamlet everest wikipedia google facebook twitter
    instagram tiktok microsoft netflix spotify samsung ubuntu debian kubernetes django pandas numpy
    tensorflow pytorch bitcoin ethereum tesla toyota ikea photoshop outlook gmail linux unix nginx
    laravel typescript fortran cobol matlab haskell clojure erlang kotlin
    """
)
# Texts with one of them are about words, which stay as they were typed: can't and cannot, Colour and color
MENTIONS = _words(
    """
    word words spell spelled spelling grammar grammatical grammatically pronounce pronounced pronunciation
    synonym synonyms antonym antonyms abbreviation abbreviations abbreviate contraction contractions
    apostrophe hyphen hyphenated capitalize capitalise capitalized capitalised capitalization uppercase
    lowercase plural singular punctuation punctuate comma commas phrase phrases sentence sentences acronym
    adverb adjective noun verb preposition pronoun rhyme rhymes mean means meaning say correct incorrect
    proofread translate translation short letter letters usage sounds typed slang idiom
    """
)
# Their case means nothing here: the name is far more common than the word in small letters, or the other way.
UNCASED = _words("python java brown black white green gray summer young")
# After "in" and "using" these are the program or the language, in whatever case
TECHNICAL = _words(
    """
    excel word windows rust go swift ruby react docker scala perl dart julia
    """
)

# Short forms in capitals that are no word in small letters.
ACRONYMS = _words(
    """
    html css sql api http https json xml yaml csv pdf cpu gpu usb ssd hdd url uri ui ux php npm jvm jdk sdk
    ide tcp udp ip dns dhcp ssh ssl tls ftp smtp vpn lan wan nasa fbi cia nato eu uk usa usd eur gbp gdp dna
    rna atp adhd hiv covid bmi kpi crm erp seo ceo cfo cto phd mba nba nfl fifa gps mri tv pc diy faq rsvp
    wwi wwii ai ml nlp llm bbc ibm amd hp lg bmw nyc javascript typescript youtube github gitlab postgresql
    mysql sqlite mongodb iphone ipad ios macos whatsapp linkedin powerpoint chatgpt openai wifi wi-fi paypal
    """
)
FUNCTION_WORDS = _words(
    """
    a the of to in on at for with and or is are was were be do does did can could will would should may
    might must i you he she it we they me my your what who whom whose which where when why how that this
    these those not if about so then there here from by as have has had one tell explain
    """
)
# Of which one at least is in an English text
ENGLISH_WORDS = FUNCTION_WORDS - {"a", "in", "on", "me", "he", "was", "die", "so", "i"} | _words(
    """
    please write give list name describe compare translate define convert solve summarize what's thanks into
    an between its his her our generate create make calculate suggest recommend flights recipes
    """
)
# Of which none is: their languages have other rules
FOREIGN = _words(
    """
    und ist nicht wie das der dem ein eine auf mit est les des une dans pour avec que qui quel quelle
    comment pourquoi como para por los las una del cual het een niet wat hoe voor della che di il sono perch
    per cosa os uma com jak czy och att hur vad je sie ich wo warum
    """
)
# Beside these a word may be an identifier, and its case matters
CODE_NOUNS = _words(
    "variable function class method column field table file type constant identifier keyword key"
)
