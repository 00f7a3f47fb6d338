"""Every text of the labelling page, in each language that it speaks, and the choice of a visitor's language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
NAMES: Mapping[Language, str] = {"en": "English", "ja": "日本語"}

TEXTS: Mapping[str, Mapping[Language, str]] = {
    # the comparison
    "title": {"en": "Which answer is better?", "ja": "どちらの回答が良いですか"},
    "prompt": {"en": "Prompt", "ja": "プロンプト"},
    "answer_a": {"en": "Answer A", "ja": "回答A"},
    "answer_b": {"en": "Answer B", "ja": "回答B"},
    "role_system": {"en": "System", "ja": "システム"},
    "role_user": {"en": "User", "ja": "ユーザー"},
    "role_assistant": {"en": "Assistant", "ja": "アシスタント"},
    "role_tool": {"en": "Tool", "ja": "ツール"},
    "judgement": {"en": "Judgement", "ja": "判定"},
    "a_much": {"en": "A much better", "ja": "Aがとても良い"},
    "a_slightly": {"en": "A slightly better", "ja": "Aが少し良い"},
    "tie": {"en": "Equally good", "ja": "同じくらい良い"},
    "b_slightly": {"en": "B slightly better", "ja": "Bが少し良い"},
    "b_much": {"en": "B much better", "ja": "Bがとても良い"},
    "both_bad": {"en": "Both bad", "ja": "どちらも悪い"},
    "skip": {"en": "Skip", "ja": "スキップ"},
    "reasons": {"en": "Reasons (optional)", "ja": "理由（任意）"},
    "reason_accurate": {"en": "Accurate", "ja": "正確"},
    "reason_helpful": {"en": "Helpful", "ja": "役に立つ"},
    "reason_harmless": {"en": "Harmless", "ja": "無害"},
    "reason_clear": {"en": "Clear", "ja": "わかりやすい"},
    "reason_concise": {"en": "Concise", "ja": "簡潔"},
    "comment": {"en": "Comment (optional)", "ja": "コメント（任意）"},
    "comment_keys": {
        "en": "Esc leaves the comment. Do not write names or other personal data.",
        "ja": "Escで入力欄を離れます。氏名などの個人情報は書かないでください。",
    },
    "undo": {"en": "Undo", "ja": "取り消す"},
    "undone": {
        "en": "The last vote is undone. Vote again.",
        "ja": "直前の判定を取り消しました。もう一度判定してください。",
    },
    "nothing_to_undo": {"en": "There is no vote to undo.", "ja": "取り消せる判定はありません。"},
    "closed": {
        "en": "That comparison is not open any more. This is the next one.",
        "ja": "その比較は終了しています。次の比較を表示します。",
    },
    "adjudication": {
        "en": "The raters disagree about these answers. Your judgement decides.",
        "ja": "評価者の意見が分かれています。あなたの判定で決まります。",
    },
    # the frame
    "skip_to_content": {"en": "Go to the comparison", "ja": "比較へ移動"},
    "progress": {"en": "{done} judged", "ja": "{done}件判定済み"},
    "progress_label": {"en": "Progress of the project", "ja": "プロジェクトの進み具合"},
    "project_progress": {"en": "project {percent}%", "ja": "全体 {percent}%"},
    "session_time": {"en": "Session", "ja": "作業時間"},
    "minutes": {"en": "{minutes} min", "ja": "{minutes}分"},
    "guidelines": {"en": "Guidelines", "ja": "ガイドライン"},
    "close": {"en": "Close", "ja": "閉じる"},
    "shortcuts": {"en": "Key shortcuts", "ja": "キー操作"},
    "shortcuts_on": {"en": "on", "ja": "オン"},
    "shortcuts_off": {"en": "off", "ja": "オフ"},
    "language": {"en": "Language", "ja": "言語"},
    "saving": {"en": "Saving …", "ja": "保存しています…"},
    "retrying": {
        "en": "The server does not answer. Trying again; keep this page open.",
        "ja": "サーバーが応答しません。再試行しています。このページを開いたままにしてください。",
    },
    "signed_in_as": {"en": "Rater {alias}", "ja": "評価者 {alias}"},
    # guidelines
    "version": {"en": "Version {version}", "ja": "第{version}版"},
    "guidelines_changed": {
        "en": "Please read the guidelines before you vote. They are new, or have changed.",
        "ja": "判定の前にガイドラインをお読みください。新しい版、または更新された版です。",
    },
    "acknowledge": {"en": "I have read version {version}", "ja": "第{version}版を読みました"},
    "no_guidelines": {"en": "This project has no guidelines.", "ja": "このプロジェクトにガイドラインはありません。"},
    "example": {"en": "Worked example", "ja": "判定の例"},
    "example_verdict": {"en": "Judgement", "ja": "判定"},
    "back": {"en": "Back to the comparisons", "ja": "比較に戻る"},
    # calibration
    "practice": {"en": "Practice", "ja": "練習"},
    "practice_right": {
        "en": "Your judgement agrees with the guidelines.",
        "ja": "あなたの判定はガイドラインと一致しています。",
    },
    "practice_wrong": {
        "en": "Your judgement differs from the guidelines.",
        "ja": "あなたの判定はガイドラインと異なります。",
    },
    "your_choice": {"en": "Your judgement", "ja": "あなたの判定"},
    "right_choice": {"en": "By the guidelines", "ja": "ガイドラインによる判定"},
    "explanation": {"en": "Why", "ja": "理由"},
    "practice_score": {"en": "{right} of {total} right so far", "ja": "ここまで{total}問中{right}問正解"},
    "practice_over": {
        "en": "The practice is over: {right} of {total} right.",
        "ja": "練習は終わりです。{total}問中{right}問正解でした。",
    },
    "continue": {"en": "Continue", "ja": "次へ"},
    # the end, and errors
    "finished": {"en": "Nothing is left to compare", "ja": "比較するものはもうありません"},
    "finished_text": {
        "en": "Thank you. You have given {done} judgements. New comparisons appear here when there are some.",
        "ja": "ありがとうございました。{done}件を判定しました。新しい比較があればここに表示されます。",
    },
    "check_again": {"en": "Check again", "ja": "もう一度確認"},
    "error": {"en": "This did not work", "ja": "処理できませんでした"},
    "error_sign_in": {
        "en": "Open the link that you were sent. If it no longer works, ask for a new one.",
        "ja": "受け取ったリンクを開いてください。使えない場合は、新しいリンクを依頼してください。",
    },
    "error_expired": {
        "en": "Your link has expired, or is not valid. Ask for a new one.",
        "ja": "リンクの期限が切れているか、無効です。新しいリンクを依頼してください。",
    },
    "error_suspended": {
        "en": "Your access is suspended. Ask the people who run this project.",
        "ja": "アクセスが停止されています。プロジェクトの担当者にお問い合わせください。",
    },
    "error_forbidden": {"en": "This is not permitted.", "ja": "この操作は許可されていません。"},
    "error_stale": {
        "en": "This page is out of date. Reload it.",
        "ja": "このページは古くなっています。再読み込みしてください。",
    },
    "error_too_many": {
        "en": "Too many requests. Wait a moment and try again.",
        "ja": "リクエストが多すぎます。少し待ってからやり直してください。",
    },
    "error_not_found": {"en": "There is no such page.", "ja": "そのページはありません。"},
    "error_input": {
        "en": "The request is not complete, or not valid.",
        "ja": "リクエストが不完全か、正しくありません。",
    },
}
"""Texts by name. ``{...}`` is filled in by the page."""


def texts(language: Language) -> dict[str, str]:
    """All texts of a language, by name."""
    return {name: variants[language] for name, variants in TEXTS.items()}


def choose_language(wish: str | None, kept: str | None, accepted: str | None) -> Language:
    """The language of ``?lang``, else of the cookie, else the best one of ``Accept-Language``, else English."""
    for name in (wish, kept, *_by_preference(accepted or "")):
        for language in LANGUAGES:
            if name == language:
                return language
    return "en"


def _by_preference(accepted: str) -> list[str]:
    """Primary language tags of an ``Accept-Language`` header (RFC 9110, 12.5.4), the most preferred first."""
    weighted = []
    for part in accepted.split(","):
        tag, _, weight = part.strip().partition(";")
        weighted.append((_quality(weight), tag.strip().partition("-")[0].lower()))
    return [tag for quality, tag in sorted(weighted, key=lambda pair: -pair[0]) if quality > 0]


def _quality(weight: str) -> float:
    """The number of ``q=0.8``: 1 if it is missing, 0 if it is none."""
    name, _, number = weight.strip().partition("=")
    if not name:
        return 1.0
    try:
        return float(number) if name.strip() == "q" else 0.0
    except ValueError:
        return 0.0
