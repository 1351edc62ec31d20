"""English words that embeddings confuse: of one kind, but not the same.

Two questions differ by two words of one group of `CONTRASTS`, such as `before/after`; a plus joins words that
mean the same. `SYNONYMS` may stand for each other where nothing else differs.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONTRASTS = """
before/after/during with/without enable+activate/disable+deactivate/bypass open/close/closed
start+begin/stop+end+finish continue/pause increase+raise/decrease+reduce+lower first/last best/worst
good/bad more/less/fewer most/least
largest+biggest/smallest/highest/lowest/longest/shortest/oldest/youngest/tallest/widest/heaviest/richest/poorest
fastest/slowest deepest/shallowest all/some/any buy+buying+purchase/sell+selling/rent/lease borrow/lend
import/export upload/download install/uninstall/update/downgrade encrypt/decrypt encode/decode
compress/extract advantages+benefits+pros/disadvantages+drawbacks+cons/risks/ingredients
causes+cause/effects+effect/consequences legal/illegal safe/unsafe win+won/lose+lost/host+hosted must/may
can/should is/was are/were will/did left/right up/down in/out on/off inside/outside indoor/outdoor
push/pull/fetch/clone/commit/rebase read+reading/write+writing ascending/descending male/female he/she
my/your singular/plural from/to i/you morning/afternoon/evening/night/noon gain/lose formal/informal
accept/decline possible/impossible north/south/east/west minimum/maximum allowed/prohibited older/younger
faster/slower longer/shorter bigger/smaller better/worse high/low short/long big+large/small+little wet/dry
everything/something/nothing/anything similarity/difference true/false free/paid public/private
internal/external major/minor primary/secondary hot/cold for/about/against/from simple/compound/technical
detail/briefly/simply
day+days+daily/week+weeks+weekly/month+months+monthly/year+years+yearly+annual/hour+hours
minute+minutes/second+seconds decade/century spring/summer/autumn/winter breakfast/lunch/dinner am/pm
thousand/million/billion/trillion
mg/g/kg/km/m/cm/mm/ml/l/mb/gb/tb/kb/mile+miles/foot+feet/inch+inches/meter+meters minutes/seconds
pounds/ounces celsius/fahrenheit/kelvin dollars/euros/yen
red/blue/green/yellow/black/white/brown/orange/purple/pink/gray
mother/father/brother/sister/son/daughter/uncle/aunt/grandfather/grandmother/husband/wife/cousin
baby/child+children/teenager+teenagers/adult+adults boy+boys/girl+girls man+men/woman+women
teacher/student/parent/principal doctor/nurse/dentist/pharmacist/patient buyer/seller landlord/tenant
employer/employee/customer/colleague/friend learn+learning/teach+teaching
ask+asking/answer+answering/give+giving treat+treatment/prevent+prevention/diagnose client/server
frontend/backend
add+adding/remove+removing+delete+deleting/rename/update/edit/move/copy/merge/split/sort/find/reverse/count
create+creating/delete+deleting/destroy lock/unlock block/unblock follow/unfollow connect/disconnect
mute/unmute tie/untie row+rows/column+columns/cell+cells/sheet+sheets list/dictionary/tuple/set/string/array
class/function/method/variable int/float/string/boolean
python/java/javascript/rust/ruby/php/perl/swift/kotlin/scala html/css/latex/markdown json/csv/xml/yaml/pdf
word/excel/powerpoint/outlook/teams windows/mac/linux/android/ios chrome/firefox/safari/edge
phone/laptop/tablet/computer/printer/router/tv keyboard/mouse/screen/speaker/camera
area/perimeter/circumference/volume/diameter/radius
triangle/rectangle/square/circle/trapezoid/pentagon/hexagon cube/sphere/cylinder/cone/pyramid
mean+average/median/mode/range/variance sine+sin/cosine+cos/tangent+tan derivative/integral/limit
linear/quadratic/cubic/exponential sum/product/difference/quotient numerator/denominator
noun/verb/adjective/adverb/pronoun/preposition past/present/future subject/object boiling/melting/freezing
proton/neutron/electron acid/base atom/molecule/ion/isotope solid/liquid/gas/plasma mitosis/meiosis dna/rna
mass/weight/volume/density/temperature/pressure/speed/acceleration/force/energy/power
kinetic/potential/nuclear/solar/wind/renewable/electrical vein/artery heart/lungs/liver/kidney/brain/stomach
muscle/bone/organ/nerve/skin virus+viruses/bacteria+bacterium/fungus
cold/flu/fever/headache/migraine/measles diabetes/cancer/asthma/arthritis
aspirin/ibuprofen/paracetamol/penicillin
vitamin+vitamins/mineral+minerals/protein/fat/carbohydrates/sugar/fiber
dog+dogs/cat+cats/horse/cow/pig/sheep/rabbit lion/tiger/elephant/giraffe/zebra/bear/wolf/fox
bee+bees/wasp/ant/butterfly/spider apple/banana+bananas/orange+oranges/pear/grape/lemon/avocado
egg+eggs/potato+potatoes/rice/pasta/bread/meat/fish tea/coffee/milk/water/juice/beer/wine
butter/oil/margarine boil/fry/bake/roast/grill/steam raw/cooked/frozen guitar/piano/violin/drums/flute
football/basketball/baseball/tennis/badminton/volleyball/hockey/cricket/rugby/golf
planet+planets/star+stars/moon+moons/comet/asteroid/galaxy mars/venus/jupiter/saturn/mercury/neptune/uranus
country+countries/city+cities/state+states/river+rivers/mountain/lake/ocean/continent
president/minister/king/queen law/bill/treaty/constitution
capital/population/currency/language/religion/flag/climate/history/economy inflation/deflation/recession
stock/bond/fund loan/mortgage/scholarship/grant income/expense supply/demand
essay/report/letter/poem/story/speech/summary/thesis introduction/conclusion/abstract/outline
plot/theme/moral/setting/character/author
definition/example+examples/symbol/unit/formula/structure/history/future cost+price/salary/tax
height/length/width/depth/age/weight/size rise/fall written+wrote/published/translated
painted/composed/invented/discovered/built/founded/destroyed born/died wear/eat/drink/bring
clean/break/repair wash/iron sleep/eat/exercise/study live+lives/eat+eats/sleep+sleeps
need+needs/get+gets/want+wants hello/goodbye/thanks/sorry/please yes/no vegan/vegetarian sport/art/game
"""
SYNONYMS = """
big+large+huge small+little+tiny fast+quick quickly+rapidly+fast begin+start buy+purchase fix+repair+mend
find+locate make+create delete+remove+erase reduce+lower+decrease increase+raise answer+reply+response
mistake+error help+assist film+movie picture+photo+image car+automobile pc+computer kids+children
doctor+physician important+essential choose+select+pick use+utilize require+need modify+alter+change
ill+sick difficult+hard easy+simple role+function gift+present forbidden+prohibited allowed+permitted
shop+store someone+somebody everyone+everybody smartphone+phone
"""
# They stand in both questions, or in neither
MARKERS = _words(
    """
    first second third fourth fifth sixth last next previous only all some every each most few half
    twice double never always again also still yet will everything nothing everybody nobody daily weekly
    monthly
    """
)
# They come and go with the form of a question
FRAME = _words(
    """
    do does did can could should would to i you we one the a an my your is are am how what which must
    need have has me us be being it
    """
)
# They add nothing to a question that has them besides
ADDS_NOTHING = _words(
    """
    way ways good best right correct correctly exactly some any there number explain mean means meant
    tips steps method type kind person thing things for at on of in by from with
    """
)
