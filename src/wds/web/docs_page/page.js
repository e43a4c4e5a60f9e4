// Shows this service's OpenAPI document. Swagger UI also reads settings from the page's query, the
// document's URL among them, so the server never shows the page with a query.

"use strict";

SwaggerUIBundle({
  url: "/docs/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // the default is a third party, which would learn this service's address
});
