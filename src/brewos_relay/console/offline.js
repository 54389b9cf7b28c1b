// The page that the service worker shows, at the URL of another page, while the server cannot be reached.

const reload = () => location.reload();
document.getElementById("again").addEventListener("click", reload);
addEventListener("online", reload);
