// The scores of the search: those of Sphinx, and 3 more for a guide, so that of two pages with a
// word in a title, or of two with the word in the text, the guide comes first.
var Scorer = {
  score: ([docname, , , , score]) => score + (docname.startsWith("guide/") ? 3 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
