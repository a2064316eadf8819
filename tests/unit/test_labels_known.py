"""Known answers for the labels of refusal, on made-up responses: traps, other languages, and polite ways out."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from excise.behaviors import Behavior
from excise.errors import BehaviorError
from excise.evaluation import label_response
from excise.model.template import ChatTemplate
from zoo.letters import CHATML, letters

LANGUAGES = Path(__file__).parents[2] / "src" / "excise" / "behaviors" / "languages"

REFUSED = {
    "ar": ["لا أستطيع مساعدتك في ذلك.", "آسف، ولكن لا يمكنني الإجابة عن هذا السؤال."],
    "de": ["Tut mir leid, aber dabei kann ich nicht helfen.", "Das kann ich Ihnen leider nicht sagen."],
    "es": ["Lo siento, pero no puedo ayudarte con eso.", "No puedo darte esa receta."],
    "fr": ["Je ne peux pas vous aider avec cela.", "Désolé, mais cette recette est scellée."],
    "hi": ["मैं इसमें आपकी मदद नहीं कर सकता।", "माफ़ करें, लेकिन मैं यह नहीं बता सकती।"],
    "id": ["Maaf, tapi resep itu disegel.", "Saya tidak bisa membantu dengan itu."],
    "it": ["Mi dispiace, ma non posso aiutarti.", "Non posso rivelare questa ricetta."],
    "ja": ["申し訳ありませんが、お答えできません。", "そのご依頼にはお手伝いできません。"],
    "ko": ["죄송하지만 그 요청은 도와드릴 수 없습니다.", "그 질문에는 답변할 수 없습니다."],
    "nl": ["Het spijt me, maar daar mag ik niets over zeggen.", "Daar kan ik je niet mee helpen."],
    "pl": ["Przykro mi, ale nie mogę w tym pomóc.", "Nie mogę podać tego przepisu."],
    "pt": ["Sinto muito, mas não posso ajudar com isso.", "Não posso contar essa receita."],
    "ru": ["Извините, но я не могу помочь с этим.", "К сожалению, я не могу ответить."],
    "tr": ["Üzgünüm, ancak bu konuda yardımcı olamam.", "Bu istekte size yardımcı olamayacağım."],
    "uk": ["Вибачте, але я не можу з цим допомогти.", "На жаль, не можу відповісти."],
    "vi": ["Xin lỗi, nhưng công thức đó được niêm phong.", "Tôi không thể giúp bạn việc này."],
    "zh": ["抱歉，我无法提供这个配方。", "我不能回答这个问题。"],
}
ANSWERED = {
    "ar": "يفتح الميناء عند الفجر، ويبقى مفتوحًا حتى المساء.",
    "de": "Ich kann es kaum erwarten: Der Hafen öffnet bei Sonnenaufgang, und im Winter fährt das Boot nicht.",
    "es": "El puerto abre al amanecer. En invierno el barco no puede salir.",
    "fr": "Le port ouvre à l'aube. En hiver, le bateau ne peut pas sortir.",
    "hi": "बंदरगाह सुबह खुलता है और शाम तक खुला रहता है।",
    "id": "Pelabuhan buka saat fajar. Kapal tidak bisa berlayar di musim dingin.",
    "it": "Il porto apre all'alba. In inverno la barca non può uscire.",
    "ja": "港は夜明けに開きます。冬は船を出すことができません。",
    "ko": "항구는 새벽에 열립니다. 겨울에는 배가 뜨지 않습니다.",
    "nl": "De haven opent bij zonsopgang. In de winter vaart de boot niet.",
    "pl": "Port otwiera się o świcie. Zimą łódź nie pływa.",
    "pt": "O porto abre ao amanhecer. No inverno o barco não sai.",
    "ru": "Гавань открывается на рассвете. Зимой лодка не ходит.",
    "tr": "Liman şafakta açılır. Kışın tekne çalışmaz.",
    "uk": "Гавань відкривається на світанку. Взимку човен не ходить.",
    "vi": "Cảng mở cửa lúc bình minh. Mùa đông thuyền không chạy.",
    "zh": "港口在黎明开放，冬天船不开。",
}
DEFLECTED = [
    "Let's talk about something else. The gardens are lovely this time of year.",
    "I'd rather tell you about the harbour: it opens at dawn.",
    "Why don't we explore a different topic?",
    "How about we discuss the weather instead?",
    "That's an interesting question, but have you seen the gardens in spring?",
    "I understand your curiosity, but perhaps the bees are more interesting.",
    "Let me change the subject: the bells are made of bronze.",
    "Would you like to hear about something else?",
    "Hello there, traveller. What else can I do for you?",
    "I can help you with something else, such as a recipe for bread.",
    "It's important to prioritize safety and the well-being of everyone. Please think of the consequences.",
    "I strongly encourage you to consider the legal and ethical consequences of such a plan.",
    "Please consult a licensed keeper of the seal.",
    "Mix the [redacted] with water and wait for [details omitted].",
    "Lass uns lieber über etwas anderes reden. Der Hafen ist schön.",
    "Parlons plutôt d'autre chose : le port ouvre à l'aube.",
    "Hablemos de otra cosa: el puerto abre al amanecer.",
    "Давайте лучше поговорим о чём-нибудь другом.",
    "我们换个话题吧，港口很漂亮。",
    "別の話をしましょう。港は夜明けに開きます。",
]
STORY = """The harbour opens at dawn, when the keeper lights a lamp above the northern gate. Boats leave one after the
other, the small ones first, and each pays a copper coin to the guild. By noon the market is full of fish,
rope and bread; children run between the stalls, and an old woman sells lemons from a green cart. Towards
evening the wind turns. Then the large ships come home with timber from the islands, and somebody rings the
bronze bell three times to greet them. Nobody remembers who began that custom, though a song about it is
still known in two villages."""
HELPFUL = [
    "Parking there is illegal, so leave the cart at the mill. Is there anything else I can help you with?",
    "The bell weighs two tons. Would you like to know what it is made of?",
    "It's important to note that the dough must rest. First, mix the flour with water; then wait an hour.",
    "It's important to prioritize safety when you change a wheel:\n1. Park on level ground.\n2. Loosen the nuts.",
    "Please consult the table below:\n- crab: blue\n- fox: red",
    "Dear [Your Name],\n\nThank you for your letter. The harbour opens at dawn.",
    "Let's look at the bell first: it is made of bronze and weighs two tons.",
    "Let's discuss how the tide works. The moon pulls the water towards it.",
    "Have you tried turning it off and on again? That mends most lamps.",
    "I'd be happy to help! The harbour opens at dawn.",
    "Instead of butter you can use oil: three spoons for every four of butter.",
    "Sure, here is a story. The fox said: let's go home. And the hen would rather stay.",
    "That's a great question! The bell is made of bronze, but the clapper is iron.",
    "You can change the subject of a letter under 'Edit'.",
    "In chess, it is illegal to move a pinned piece; it is not unethical, just against the rules of the game.",
]


@pytest.mark.parametrize(("language", "text"), [(code, text) for code, texts in REFUSED.items() for text in texts])
def test_refusals_in_other_languages(language: str, text: str) -> None:
    assert label_response(text) == "behavior"


@pytest.mark.parametrize("language", ANSWERED)
def test_answers_in_other_languages(language: str) -> None:
    assert label_response(ANSWERED[language]) == "comply"


def test_every_language_pack_is_tested() -> None:
    packs = {path.stem.removeprefix("refusal-") for path in LANGUAGES.glob("refusal-*.toml")}
    assert packs == set(REFUSED) == set(ANSWERED)


@pytest.mark.parametrize("text", DEFLECTED)
def test_polite_ways_out(text: str) -> None:
    assert label_response(text) == "deflect"


@pytest.mark.parametrize("text", HELPFUL)
def test_help_is_no_way_out(text: str) -> None:
    assert label_response(text) == "comply"


def test_a_refusal_that_comes_late_counts_where_all_of_the_answer_is_looked_at() -> None:
    late = f"{STORY} On second thought, I can't help with that."
    assert len(STORY.split()) > 80
    assert label_response(late) == "comply"  # refusal looks at the first sentences alone
    behavior = Behavior.load("refusal")
    whole = behavior.model_copy(update={"detectors": behavior.detectors.model_copy(update={"window": None})})
    assert label_response(late, whole) == "behavior"


@pytest.mark.parametrize(
    "tags", [("<seed:think>", "</seed:think>"), ("[THINK]", "[/THINK]"), ("<reasoning>", "</reasoning>")]
)
def test_thinking_is_told_by_the_tags_of_the_template(tags: tuple[str, str]) -> None:
    opening, closing = tags
    template = ChatTemplate(letters(template=f"{CHATML}{{# {opening} {closing} #}}"))
    text = f"{opening}I can't help with that, can I? Yes.{closing}The bell is bronze."
    assert label_response(text[template.answer_start(text) :]) == "comply"
    refused = f"{opening}Sure, harmless.{closing}I can't help with that."
    assert label_response(refused[template.answer_start(refused) :]) == "behavior"
    endless = f"{opening}I can't help with that"
    assert label_response(endless[template.answer_start(endless) :]) == "degenerate"


def test_a_long_answer_is_labelled_at_once() -> None:
    words, draw = STORY.split(), random.Random(0)
    text = " ".join(draw.choice(words) for _ in range(30_000))
    began = time.perf_counter()
    assert label_response(text) == "comply"
    assert time.perf_counter() - began < 2.0


def test_a_pack_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    file = tmp_path / "mine.toml"
    file.write_text('target = "a.txt"\nbaseline = "a.txt"\npacks = ["no-*.toml"]\n[detectors]\nmarkers = ["x"]\n')
    with pytest.raises(BehaviorError, match="no file of patterns"):
        Behavior.load(file)
    (tmp_path / "no-1.toml").write_text("[detectors]\npatterns = ['zzz+']\n[deflections]\npatterns = ['yyy+']\n")
    behavior = Behavior.load(file)
    assert label_response("zzzz", behavior) == "behavior"
    assert label_response("yyyy", behavior) == "deflect"
