"""Telling once what goes on for long."""

from distributary.engine.news import AGAIN_SECONDS, News


def test_a_trouble_is_told_at_its_beginning_and_once_a_minute() -> None:
    """However often it is met, an hour of it is sixty lines; its end is told once, and its next beginning at once."""
    now = 0.0
    news = News(lambda: now)
    told = 0
    while now < 3600:
        told += news.is_news()
        now += 0.5
    assert told == 3600 / AGAIN_SECONDS
    assert news.lasts
    assert (news.ends(), news.ends(), news.lasts) == (True, False, False)
    assert news.is_news()


def test_without_a_trouble_there_is_no_end() -> None:
    """What never was does not end."""
    assert not News().ends()
