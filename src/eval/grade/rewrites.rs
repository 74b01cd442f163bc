//! How a freeform answer becomes its normal form: tables of rewritings, the signs of a doubt, and
//! the words that carry no answer.

/// Rewritings, applied in this order to a text in small letters whose words are single-spaced and
/// whose sentence marks are ` | `. What is in capitals is a word of the normal form; `@` marks the
/// goal of a motion other than the camera.
pub const REWRITES: [&[(&str, &str)]; 7] =
    [AROUND, WORDS, REST, DIRECTIONS, GOALS, ABSENCE, TOGETHER];

/// Said around an answer.
const AROUND: &[(&str, &str)] = &[
    // What names nothing, where something follows.
    (r"\bi (?:think|believe|would say)\b", ""),
    (r"^(?:\| ?)?(?:sure|okay|ok|certainly|well|neither) \| ?(\S)", "$1"),
    (
        r"^(?:\| ?)?(?:based on|in) (?:the )?(?:given |provided )?(?:video|image|frame|clip|scene|footage)s?(?: provided)? \| ?(\S)",
        "$1",
    ),
    (r"\b(?:given|provided) (video|image|frame|clip|scene|footage)", "$1"),
    // The question's own words: `the direction that the bus is moving towards is`.
    (r"\bdirection (?:\w+ ){1,6}\w+ing(?: in| to| towards?)? (?:is|was|would be)\b", ""),
    // How it looks is how it is.
    (r"\bnot (?:appear|seem) to(?: be)?\b", "not"),
    (r"\b(?:appears?|seems?) to be\b", "is"),
    // Not to see it denies it, and what follows from a denial is no doubt about it: `no bus, so its
    // direction cannot be determined`.
    (r"\b(?:can|ca) not\b", "cannot"),
    (r"\bi cannot see\b", "not see"),
    (
        r"\b((?:no|not) \w[^|]*?)(?: \|)? (?:so|therefore|thus|hence|and|making)\b[^|]*\b(?:cannot|not possible|unable|impossible)\b[^|]*",
        "$1 ",
    ),
];

/// Words without weight, and one spelling for each word.
const WORDS: &[(&str, &str)] = &[
    (r"\b(?:a|an|the|this|that|these|those|its|his|her|hers|their|theirs|my|your|own)\b", ""),
    (r"\b(?:can|do|does|did|is|are|was|were|has|have) ?n't\b", "not"),
    (r"\bther (are|is)\b", "there $1"),
    (r"\bfarther\b", "further"),
    (r"\bnearer\b", "closer"),
    (r"\bonce\b", "1 time"),
    (r"\btwice\b", "2 time"),
    (r"\bthrice\b", "3 time"),
    (r"\btimes\b", "time"),
    (r"\bright (?:now|away)\b", ""),
    (r"\b((?:turn|spin|rotat)\w*) around\b", "$1"),
    (r"\b(?:when |as )?(?:viewed|seen|looking) from above\b", ""),
    (r"\b(?:in|towards?) (?:any |specific |particular |certain |single |clear )+directions?\b", ""),
];

/// Rotation and rest, before the words that they are made of.
const REST: &[(&str, &str)] = &[
    (r"\b(?:counter|anti)[ -]?clock ?wise\b", "COUNTERCLOCKWISE"),
    (r"\bclock ?wise\b", "CLOCKWISE"),
    // Less than expected is not nothing.
    (
        r"\bnot (?:moving|move|moved|spinning|spin|rotating|rotate|turning|turn) (?:very |so )?(?:fast|quickly|much|far|in same)\b",
        "barely",
    ),
    (
        r"\bnot (?:be |been )?(?:spinning|rotating|spin|rotate)\b|\bno (?:rotation|spin)\b",
        "NOT_SPINNING",
    ),
    (
        r"\b(?:(?:moving|going|moves|goes) )?straight(?: (?:and not|without) turning)?\b|\b(?:not|no) turn(?:ing)?\b",
        "STRAIGHT",
    ),
    (
        r"\b(?:remain|stay|keep|kept|sit|stand)\w* (?:still|stationary|put|(?:in|at) (?:same )?(?:place|location|position|spot))\b",
        "STILL",
    ),
    (
        r"\bnot (?:be |been )?(?:moving|moved|move)(?: at all)?\b|\bnot in motion\b|\bno (?:movement|motion)\b",
        "STILL",
    ),
    (r"\b(?:stationary|motionless|immobile|at rest)\b", "STILL"),
    // Said of what is asked for: not of a parked car that it passes, or of a static camera.
    (r"^(static|parked)( \||$)", "is $1$2"),
    (r"\b(?:camera|background|scene) (?:is|was|remains?|stays?|appears?) (?:static|fixed)\b", ""),
    (
        r"^((?:\w+ ){0,3}?)(?:is|are|was|were|be|remains?|stays?|appears?) (?:static|parked|fixed)(?: in place)?\b",
        "${1}STILL",
    ),
    (r"\bstill (\w+ing)\b", "$1"),
    (r"\bstill\b", "STILL"),
];

/// Sides, ways and places.
const DIRECTIONS: &[(&str, &str)] = &[
    (r"\bleft(?:wards?|most)?\b", "LEFT"),
    (r"\bright(?:wards?|most)?\b", "RIGHT"),
    (r"\bLEFT (?:frame|scene|screen|video)\b", "GONE"),
    (r"\b(LEFT|RIGHT) (?:hand|side|one|direction)s?\b", "$1"),
    (r"\btop (LEFT|RIGHT)\b|\b(LEFT|RIGHT) top\b", "UP $1$2"),
    (r"\bbottom (LEFT|RIGHT)\b|\b(LEFT|RIGHT) bottom\b", "DOWN $1$2"),
    (r"\bup ?hill\b", "UPHILL"),
    (r"\bdown ?hill\b", "DOWNHILL"),
    // Not every `up` is a way.
    (r"\b(pick)(?:s|ed|ing)? (\w+ )?(up|down)\b", "$1$3 $2"),
    (r"\b(end|stand|get|set)(?:s|ed|ing|ting)? up\b", "${1}up"),
    (r"\b(?:speed(?:s|ing)? up|accelerat\w+|faster)\b", "FASTER"),
    (r"\b(?:slow(?:s|ing)? down|decelerat\w+|slower)\b", "SLOWER"),
    (r"\b(?:up|upwards?|upper)\b", "UP"),
    (r"\b(?:down|downwards?|lower)\b", "DOWN"),
    (r"\b(?:forward|forwards)\b", "FORWARD"),
    (r"\b(?:backward|backwards|in reverse)\b", "BACKWARD"),
    (r"\bin front(?: of)?\b", "FRONT"),
    (r"\bbehind\b", "BEHIND"),
    (r"\babove\b", "ABOVE"),
    (r"\b(?:below|beneath|underneath)\b", "BELOW"),
];

/// To and from the camera, or another goal.
const GOALS: &[(&str, &str)] = &[
    (r"\b(?:closer (?:to|towards?)|approach(?:es|ing)|towards?|in direction of)\b", "TO"),
    (r"\b(?:further )?away from\b|\bfurther from\b", "FROM"),
    (r"\bTO (?:camera|viewer|observer|screen|lens|us)\b", "TOWARDS"),
    (r"\bFROM (?:camera|viewer|observer|screen|lens|us)\b", "AWAY"),
    (r"\bTO (or|nor)\b", "TOWARDS $1"),
    // Forwards is no other way than towards the camera.
    (r"\bFORWARD (?:\| )?(TOWARDS|AWAY)\b", "$1"),
    (r"\bcloser\b", "TOWARDS"),
    (r"\bTOWARDS TOWARDS\b", "TOWARDS"),
    (r"\bTOWARDS TO\b", "TO"),
    (r"\bfurther away\b|\bfurther\b|\baway\b|\breced(?:es|ing)\b", "AWAY"),
    (r"\bTO ([A-Z_]{2,})\b", "$1"),
    (r"\bTO (\w+)\b", "TOWARDS @$1"),
    (r"\bFROM (\w+)\b", "AWAY @$1"),
    (r"\bTO\b", "TOWARDS"),
    (r"\bFROM\b", "AWAY"),
];

/// Yes, no, and what is not there.
const ABSENCE: &[(&str, &str)] = &[
    (r"^(?:yes|yeah|yep)\b|\bis yes(?: \||$)", "YES"),
    (r"^ *(?:no|nope) *(?:\||$)|\bis no(?: \||$)", "NO |"),
    (r"\b(?:no one|nobody)\b", "nobody"),
    (r"^none\b", "NONE"),
    (r"\bboth (.+ and )", "$1"),
    (
        r"\bthere (?:is|are|was|were|s|does|do|did) (?:not any|not|no)\b|\bthere not any\b|\bthere not\b",
        "ABSENT",
    ),
    // Not to see the way of a thing is not to deny the thing.
    (
        r"\bnot (?:contain|show|feature|include|see)s? (?:any |clear )*(?:direction|motion|movement)s?\b",
        "unclear",
    ),
    (
        r"\b(?:direction|motion|movement)s? (?:of (?:\w+ ){1,4}?)?(?:is|are|was|were) not (?:visible|present|shown|seen)\b",
        "unclear",
    ),
    (r"\bnot (?:contain|show|feature|include|see)s? (?:any )?", "ABSENT "),
    (r"\bcan be (seen|found|detected|observed)\b", "$1"),
    (
        r"(^|\| )((?:[a-z]+ ){1,4}?)(?:(?:is|are|was|were) )?not (?:visible|present|shown|seen|exist|appear|in (?:video|scene|image|frame))\b",
        "${1}ABSENT $2",
    ),
    (r"\bno (\w)", "ABSENT $1"),
];

/// Words of the normal form that say one thing together.
const TOGETHER: &[(&str, &str)] = &[
    // No motion, to either side.
    (
        r"\b(STILL|STRAIGHT|NOT_SPINNING) (?:in either direction|(?:(?:to|in) )?[A-Z]{2,}(?: \|)? (?:or|nor) (?:(?:to|in) )?[A-Z]{2,})\b",
        "$1",
    ),
    (
        r"\bneither (?:in )?(?:COUNTER)?CLOCKWISE nor (?:in )?(?:COUNTER)?CLOCKWISE\b",
        "NOT_SPINNING",
    ),
    (r"\bturn(?:s|ing)? neither (?:to )?(?:LEFT|RIGHT) nor (?:to )?(?:LEFT|RIGHT)\b", "STRAIGHT"),
];

/// Signs, in the normal form, that an answer is doubted, or one of several.
pub const DOUBTS: &str = concat!(
    r"\b(?:or|either|cannot|unable|unclear|unknown|uncertain|sorry|maybe|perhaps|possibly|",
    r"(?:not|ABSENT) (?:sure|clear|possible|enough|certain)|(?:hard|difficult) to (?:tell|say|see|know|determine)|",
    r"(?:at (?:least|most)|more than|less than|fewer than|about|around|approximately|roughly|",
    r"almost|nearly|half of|several|few|UP to|(?:minimum|maximum)(?: of)?) \d|",
    r"\d+ (?:plus|at (?:least|most))|[1-9]0 odd)|",
    // `over` and `under` a thing are places.
    r"(?:^|\b(?:is|are|was|were|does|do|did) )(?:well |just )?(?:over|under|BELOW) \d",
);

/// Words that carry no answer.
pub const FILLERS: &[&str] = &[
    "is",
    "are",
    "was",
    "were",
    "be",
    "been",
    "being",
    "it",
    "he",
    "she",
    "they",
    "them",
    "there",
    "here",
    "in",
    "on",
    "at",
    "of",
    "to",
    "from",
    "by",
    "with",
    "as",
    "has",
    "have",
    "had",
    "does",
    "do",
    "did",
    "will",
    "move",
    "moves",
    "moved",
    "moving",
    "going",
    "goes",
    "go",
    "coming",
    "comes",
    "come",
    "getting",
    "gets",
    "heading",
    "headed",
    "traveling",
    "travelling",
    "video",
    "scene",
    "image",
    "images",
    "frame",
    "frames",
    "footage",
    "picture",
    "screen",
    "clip",
    "direction",
    "directions",
    "side",
    "visible",
    "present",
    "shown",
    "seen",
    "found",
    "detected",
    "observed",
    "any",
    "time",
    "answer",
    "s",
    "i",
    "we",
];
